"""What the values of a collection or a variable are: parameters, statistics, activations, counters.

The table, of Flax linen's collections and of NNX's types of variables; what is in neither is a
statistic::

    role         linen's collections     NNX's variables    inside a half function
    parameter    params                  Param              cast as the level says
    activation   cache, intermediates,   Cache,             half; comes back in the dtype it had
                 perturbations           Intermediate
    counter                              RngState           as it is
    statistic    batch_stats             BatchStat          as it is
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import jax

from jinit._arithmetic import is_float
from jinit._trees import collection_of, path_text
from jinit.modules.kinds import is_nnx_state, is_nnx_variable

__all__ = [
    "ROLES",
    "Role",
    "Roles",
    "leaf_roles",
    "optimized",
    "param_mask",
    "parse_roles",
    "role_of",
]

Role: TypeAlias = Literal["parameter", "statistic", "activation", "counter"]
"""What values are: trained, measured, data of the function, or its random numbers."""

Roles: TypeAlias = tuple[tuple[str | type, Role], ...]
"""What the user says of collections and of types of variables."""

ROLES: Mapping[str, Role] = {
    "params": "parameter",
    "batch_stats": "statistic",
    "cache": "activation",
    "intermediates": "activation",
    "perturbations": "activation",
    "Param": "parameter",
    "BatchStat": "statistic",
    "Cache": "activation",
    "Intermediate": "activation",
    "RngState": "counter",
}


def parse_roles(given: Mapping[str | type, Role] | None) -> Roles:
    """Reads what the user says of collections and variables.

    Raises:
        TypeError: A key is neither a collection's name nor a type of variables.
        ValueError: A role is not one.
    """
    for key, role in (given or {}).items():
        if not isinstance(key, str | type):
            raise TypeError(
                f"roles has the key {key!r}: write the name of a collection, or a subclass of "
                "nnx.Variable"
            )
        if role not in get_args(Role):
            raise ValueError(
                f"roles says {role!r} of {getattr(key, '__name__', key)}: write "
                f"{', '.join(map(repr, get_args(Role)))}"
            )
    return tuple((given or {}).items())


def role_of(kind: str | type, roles: Roles = ()) -> Role:
    """Returns what the values of a collection or of a type of variables are.

    Example:
        >>> role_of("batch_stats"), role_of("cache"), role_of("cache", (("cache", "statistic"),))
        ('statistic', 'activation', 'statistic')
    """
    said = dict(roles)
    if isinstance(kind, str):
        return said.get(kind) or ROLES.get(kind, "statistic")
    for base in kind.__mro__:
        if base in said:
            return said[base]
        if base.__module__.startswith("flax.nnx") and base.__name__ in ROLES:
            return ROLES[base.__name__]
    return "statistic"


def leaf_roles(
    variables: Any, roles: Roles = (), collection: str | None = None
) -> tuple[Role, ...]:
    """Returns of every leaf of a tree what it is.

    Args:
        variables: Any tree. Its top level are collections where ``params`` is among them;
            elsewhere what is not a variable of NNX is a parameter, but for the arrays that an NNX
            object holds without one.
        roles: What the user says of collections and variables.
        collection: The top-level entry that holds the parameters, where it is not Flax's.

    Example:
        >>> leaf_roles({"batch_stats": {"mean": 0.0}, "params": {"scale": 1.0}})
        ('statistic', 'parameter')
    """
    name = collection_of(variables, collection)
    found: list[Role] = []
    nodes = jax.tree_util.tree_leaves_with_path(variables, is_leaf=is_nnx_variable)
    said: dict[Any, Role] = dict(roles)
    of_objects = is_nnx_state(variables) and any(is_nnx_variable(node) for _, node in nodes)
    for path, node in nodes:
        entry = path_text(path[:1])
        role: Role = "parameter"
        if is_nnx_variable(node):
            role = role_of(type(node), roles)
        elif of_objects:
            role = "statistic"
        elif name is None:
            role = said.get(entry, "parameter")
        elif entry != name:
            role = "statistic" if entry == "params" else role_of(entry, roles)
        found.extend(role for _ in jax.tree.leaves(node))
    return tuple(found)


def param_mask(
    variables: Any, roles: Roles = (), collection: str | None = None
) -> tuple[bool, ...]:
    """Returns for every leaf whether it is a parameter.

    Example:
        >>> param_mask({"batch_stats": {"mean": 0.0}, "params": {"scale": 1.0}})
        (False, True)
    """
    return tuple(role == "parameter" for role in leaf_roles(variables, roles, collection))


def optimized(variables: Any, parameters: Sequence[bool], collection: str | None = None) -> Any:
    """Returns what an optimizer sees: the parameters that are floats, None in place of others.

    Of an NNX state it is the state of its parameters alone, and of collections the one that holds
    them, if no other does.

    Args:
        variables: Any tree.
        parameters: For every leaf whether it is a parameter.
        collection: The top-level entry that holds the parameters, where it is not Flax's.
    """
    leaves, tree = jax.tree.flatten(variables)
    kept = [x if flag and is_float(x) else None for x, flag in zip(leaves, parameters, strict=True)]
    whole, name = jax.tree.unflatten(tree, kept), collection_of(variables, collection)
    if is_nnx_state(whole):
        return _filled(whole)
    others = {key: tree for key, tree in whole.items() if key != name} if name is not None else None
    return whole if name is None or jax.tree.leaves(others) else whole[name]


def _filled(state: Any) -> Any:
    """Leaves out the variables of an NNX state that hold nothing."""
    from flax import nnx

    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_nnx_variable)
    flat = {tuple(key.key for key in path): node for path, node in nodes if jax.tree.leaves(node)}
    return nnx.from_flat_state(flat)
