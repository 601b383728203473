"""The optax transformation that carries learning-rate multipliers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jinit._arithmetic import apply_scale, is_float
from jinit._trees import leaf_paths

if TYPE_CHECKING:
    import optax

__all__ = ["ScaleByMultipliersState", "scale_by_multipliers"]

_SHOWN = 6  # paths of a mismatch


class ScaleByMultipliersState(NamedTuple):
    """The multipliers, in the structure of the parameters that are optimized."""

    multipliers: Any


def scale_by_multipliers(multipliers: Any) -> "optax.GradientTransformation":
    """Multiplies every update by its leaf's multiplier, in float32 or wider.

    Leaves are matched by their paths: frameworks hand an optimizer the same parameters in trees
    of several structures.

    Args:
        multipliers: A tree like the parameters, or like the variables whose ``params`` are
            optimized; each of shape () or with leading axes of its leaf, some of length 1.

    Returns:
        A transformation whose state holds the multipliers.
    """
    import optax

    def init(params: Any) -> ScaleByMultipliersState:
        return ScaleByMultipliersState(_matched(multipliers, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(apply_scale, updates, _matched(state.multipliers, updates)), state

    return optax.GradientTransformation(init, update)


def _matched(multipliers: Any, params: Any) -> Any:
    """Returns the multipliers in the structure of parameters, of which there may be fewer.

    Raises:
        ValueError: A parameter has none.
    """
    wanted = jax.tree.structure(params)
    if jax.tree.structure(multipliers) == wanted:
        return multipliers
    leaves, paths = jax.tree.leaves(params), leaf_paths(params)
    inner = multipliers.get("params") if isinstance(multipliers, Mapping) else None
    for tree in (multipliers, inner):
        known = dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))
        # an integer takes part in no step, and has no multiplier where modules are calibrated
        found = [
            known.get(path, None if is_float(leaf) else jnp.float32(1))
            for path, leaf in zip(paths, leaves, strict=True)
        ]
        if all(each is not None for each in found):
            return jax.tree.unflatten(wanted, found)
    known = leaf_paths(multipliers if inner is None else inner)
    raise ValueError(
        "the optimizer's parameters have another structure than those that were calibrated; "
        f"calibrate the tree you optimize\n  only the optimizer has: {_beyond(paths, known)}\n"
        f"  only the calibration has: {_beyond(known, paths)}"
    )


def _beyond(paths: Sequence[str], others: Sequence[str]) -> str:
    """Lists the first of the paths that are not among others."""
    only = sorted({*paths} - {*others})
    more = f" and {len(only) - _SHOWN} more" if len(only) > _SHOWN else ""
    return (", ".join(path or "." for path in only[:_SHOWN]) or "none") + more
