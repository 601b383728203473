"""A calibration of shapes: nothing is measured, and what it would return is known all the same."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from jinit._trees import leaf_paths
from jinit.empirical.results.calibration import Calibration
from jinit.tracing import ARRAYS_OR_SHAPES, Static, partition

__all__ = ["is_abstract", "planned"]

P = TypeVar("P")


def is_abstract(params: object) -> bool:
    """Returns whether a leaf of a tree is the shape of an array."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))


def planned(run: Callable[[P], Calibration[P]], params: P) -> Calibration[P]:
    """Traces a calibration of shapes, whose results are shapes with the shardings given."""
    static, shapes = partition(params, ARRAYS_OR_SHAPES)
    rest: list[Static] = []

    def arrays_of(leaves: Sequence[Any]) -> list[Any]:
        """Returns the arrays of the result, which may hold functions beside them."""
        made, arrays = partition(run(static.fill(leaves)))
        rest.append(made)
        return arrays

    arrays = jax.eval_shape(arrays_of, shapes)
    made: Calibration[P] = rest[-1].fill(arrays)
    placed = {
        path: getattr(leaf, "sharding", None)
        for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True)
    }
    paths = iter(leaf_paths(made.params))

    def with_sharding(leaf: Any) -> Any:
        sharding = placed.get(next(paths))
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(with_sharding, made.params)
    return Calibration(params, made.multipliers, made.scales, made._findings)
