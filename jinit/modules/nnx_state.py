"""What NNX's objects carry beside their parameters, kept while something is tried."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jinit.modules.nnx_calls import is_object
from jinit.modules.roles import is_nnx_variable, role_of

__all__ = ["carried_state", "keep_where"]


def carried_state(tree: Any) -> list[tuple[Any, Any]]:
    """Lists the variables of a tree's NNX objects that a call moves, with their values.

    These are statistics and activations: parameters are the optimizer's, and random counters go
    on whatever happens.
    """
    objects = [node for node in jax.tree.leaves(tree, is_leaf=is_object) if is_object(node)]
    if not objects:
        return []
    from flax import nnx

    nodes = [node for _, node in nnx.iter_graph(objects)]
    variables = {id(node): node for node in nodes if is_nnx_variable(node)}
    return [
        (variable, variable.get_value())
        for variable in variables.values()
        if role_of(type(variable)) in ("statistic", "activation")
    ]


def keep_where(finite: jax.Array, before: Sequence[tuple[Any, Any]]) -> None:
    """Sets variables back to their values of before, unless ``finite``."""
    for variable, old in before:
        new = variable.get_value()
        if new is not old and _alike(new, old):
            variable.set_value(jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old))


def _alike(new: Any, old: Any) -> bool:
    shapes = [
        [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(value)] for value in (new, old)
    ]
    return jax.tree.structure(new) == jax.tree.structure(old) and shapes[0] == shapes[1]
