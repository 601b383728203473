"""What a value is to the frameworks, told without importing any of them."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax

from jinit._kinds import kind_of
from jinit.tracing import ARRAYS

__all__ = [
    "HOLDING",
    "Form",
    "calls_itself",
    "form_of",
    "haiku_of_apply",
    "has_variables",
    "hidden_module",
    "holds_equinox",
    "holds_nnx",
    "is_bound",
    "is_framework_type",
    "is_nnx_module",
    "is_nnx_object",
    "is_nnx_state",
    "is_nnx_variable",
    "lacks_variables",
    "name_of",
]

Form: TypeAlias = Literal["nnx", "equinox", "bound", "linen", "Transformed", "TransformedWithState"]
"""Of an NNX object, an Equinox module, a bound or unbound linen module, what Haiku transformed."""


HOLDING: frozenset[Form | None] = frozenset(("nnx", "equinox", "bound"))
"""The forms of what holds its variables."""

_HAIKU: tuple[Form, Form] = ("Transformed", "TransformedWithState")


def is_framework_type(value: Any, framework: str, name: str) -> bool:
    """Tells a framework's objects without importing it: they exist only where it is imported."""
    module = sys.modules.get(framework)
    return module is not None and isinstance(value, getattr(module, name))


def form_of(value: Any) -> Form | None:
    """Returns in which form a model is given, or what applies one; None for a tree or a function.

    Those of ``HOLDING`` hold their variables; the others are applied to some.
    """
    if holds_nnx(value):
        return "nnx"
    if holds_equinox(value):
        return "equinox"
    if is_framework_type(value, "flax.linen", "Module"):
        return "linen" if value.scope is None else "bound"
    for name in _HAIKU:
        if is_framework_type(value, "haiku", name):
            return name
    return None


def has_variables(value: Any) -> bool:
    """Returns whether a value is an object that holds its arrays, or a container of some."""
    return form_of(value) in HOLDING


def lacks_variables(value: Any) -> bool:
    """Returns whether a value is a model that is applied to variables, and no function of them."""
    return form_of(value) not in (None, *HOLDING)


def calls_itself(value: Any) -> bool:
    """Returns whether a model holds its variables, and is called with the inputs alone."""
    form = form_of(value)
    module = is_nnx_object(value) or is_framework_type(value, "equinox", "Module")
    return form == "bound" or (module and callable(value) and form is not None)


def name_of(value: Any) -> str:
    """Names a model by its framework and its class, and describes another value."""
    name = type(value).__name__
    if is_nnx_object(value):
        return f"an NNX object ({name})"
    return f"Haiku's {name}" if form_of(value) in _HAIKU else kind_of(value)


def hidden_module(fn: Any) -> Any:
    """Returns the module that a function was made of, as ``jax.vmap(module)`` was, or None."""
    made_of = _unwrapped(fn)
    if getattr(made_of, "__name__", "") == "__call__":
        made_of = getattr(made_of, "__self__", made_of)
    return made_of if made_of is not fn and has_variables(made_of) else None


def haiku_of_apply(fn: Any) -> str | None:
    """Names what Haiku transformed, given its apply that takes more than params and inputs."""
    made_of = _unwrapped(fn)
    if not (getattr(made_of, "__module__", None) or "").startswith("haiku."):
        return None
    second = [*inspect.signature(made_of).parameters][1:2]
    return {"rng": _HAIKU[0], "state": _HAIKU[1]}.get(*second) if second else None


def _unwrapped(fn: Any) -> Callable[..., Any]:
    return inspect.unwrap(fn.func if isinstance(fn, functools.partial) else fn)


def is_bound(value: Any) -> bool:
    """Returns whether a value is a linen module with its variables."""
    return is_framework_type(value, "flax.linen", "Module") and value.scope is not None


def is_nnx_module(value: Any) -> bool:
    """Returns whether a value is a module of NNX."""
    return is_framework_type(value, "flax.nnx", "Module")


def is_nnx_object(node: Any) -> bool:
    """Returns whether a node is an object of NNX that may hold variables."""
    return is_framework_type(node, "flax.nnx", "Pytree")


def holds_nnx(value: Any) -> bool:
    """Returns whether a value is an object of NNX, or a container of some."""
    return any(map(is_nnx_object, jax.tree.leaves(value, is_leaf=is_nnx_object)))


def holds_equinox(value: Any) -> bool:
    """Tells Equinox's modules from its wrappers of functions by their arrays."""

    def found(node: Any) -> bool:
        return is_framework_type(node, "equinox", "Module")

    nodes = [node for node in jax.tree.leaves(value, is_leaf=found) if found(node)]
    return any(isinstance(leaf, ARRAYS) for leaf in jax.tree.leaves(nodes))


def is_nnx_state(node: Any) -> bool:
    """Returns whether a node is a state of NNX."""
    return is_framework_type(node, "flax.nnx", "State")


def is_nnx_variable(node: Any) -> bool:
    """Returns whether a node is a variable of NNX."""
    return is_framework_type(node, "flax.nnx", "Variable")
