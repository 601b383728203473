"""The optax transformation that carries learning-rate multipliers."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from jinit._arithmetic import apply_scale

if TYPE_CHECKING:
    import optax

__all__ = ["ScaleByMultipliersState", "scale_by_multipliers"]


class ScaleByMultipliersState(NamedTuple):
    """The multipliers, in the structure of the parameters that are optimized."""

    multipliers: Any


def scale_by_multipliers(multipliers: Any) -> "optax.GradientTransformation":
    """Multiplies every update by its leaf's multiplier, in float32 or wider.

    Args:
        multipliers: A tree like the parameters, or like the variables whose ``params`` are
            optimized; each of shape () or with leading axes of its leaf, some of length 1.

    Returns:
        A transformation whose state holds the multipliers.
    """
    import chex
    import optax

    def init(params: Any) -> ScaleByMultipliersState:
        return ScaleByMultipliersState(_matching(multipliers, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        chex.assert_trees_all_equal_structs(updates, state.multipliers)
        return jax.tree.map(apply_scale, updates, state.multipliers), state

    return optax.GradientTransformation(init, update)


def _matching(multipliers: Any, params: Any) -> Any:
    wanted = jax.tree.structure(params)
    for tree in (multipliers, multipliers.get("params") if hasattr(multipliers, "get") else None):
        if tree is not None and jax.tree.structure(tree) == wanted:
            return tree
    raise ValueError(
        "the optimizer's parameters have another structure than those that were calibrated: "
        f"{wanted} against {jax.tree.structure(multipliers)}; calibrate the tree you optimize"
    )
