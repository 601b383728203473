"""What NNX's objects carry beside their parameters, kept while something is tried."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jinit.modules.kinds import is_nnx_variable
from jinit.modules.nnx_calls import is_object
from jinit.modules.roles import role_of

__all__ = ["Carried", "carried_state", "keep_where"]

Carried: TypeAlias = tuple[Any, str | None, Any]
"""A variable, or an object and the name of its attribute; and the value there."""


def carried_state(tree: Any) -> list[Carried]:
    """Lists what a call moves in a tree's NNX objects: where it is, and its value.

    These are statistics and activations, in variables or as arrays alone: parameters are the
    optimizer's, and random counters go on whatever happens.
    """
    objects = [node for node in jax.tree.leaves(tree, is_leaf=is_object) if is_object(node)]
    if not objects:
        return []
    from flax import nnx

    nodes = {id(node): node for _, node in nnx.iter_graph(objects)}
    return [held for node in nodes.values() for held in _held(node)]


def _held(node: Any) -> list[Carried]:
    if is_nnx_variable(node):
        moves = role_of(type(node)) in ("statistic", "activation")
        return [(node, None, node.get_value())] if moves else []
    if not is_object(node):
        return []
    arrays = [(name, value) for name, value in vars(node).items() if isinstance(value, jax.Array)]
    return [(node, name, value) for name, value in arrays]


def keep_where(finite: jax.Array, before: Sequence[Carried]) -> None:
    """Sets what was listed back to the values of before, unless ``finite``."""
    for owner, name, old in before:
        new = owner.get_value() if name is None else getattr(owner, name, None)
        if new is old or not _alike(new, old):
            continue
        kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        if name is None:
            owner.set_value(kept)
        else:
            setattr(owner, name, kept)


def _alike(new: Any, old: Any) -> bool:
    shapes = [
        [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(value)] for value in (new, old)
    ]
    return jax.tree.structure(new) == jax.tree.structure(old) and shapes[0] == shapes[1]
