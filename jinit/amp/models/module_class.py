"""Modules of NNX and Equinox at a level: copies of a class that calls at that level.

``module_at(module, policy)`` makes an object of a subclass that overrides ``__call__``. So it
is a module of the same kind, with the same fields and paths; what the framework does with modules
(transforms, splitting, saving) it does with this one. Inside a call, where everything is cast
already, the module is of its own class again: what it calls itself, or asks its class, is its own.
"""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jinit.amp.apply import MixedPrecisionApply
from jinit.amp.casting.module_types import nnx_types
from jinit.amp.policy import Policy
from jinit.modules.borrowed_class import being, set_class
from jinit.modules.kinds import is_framework_type, is_nnx_module, is_nnx_object

__all__ = ["apply_of", "is_module", "module_at"]


_PLAIN, _APPLY = "_jinit_plain", "_jinit_apply"
"""Where a class at a level has the class that it is of, and its call: no user's names."""


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls the module at its level."""
    return getattr(type(self), _APPLY)(self, *args, **kwargs)


def _reduce(self: Any) -> Any:
    # The class is made as the program runs: by its name, pickle would not find it.
    cls = type(self)
    return _empty, (getattr(cls, _PLAIN), getattr(cls, _APPLY).policy), self.__dict__


def _setstate(self: Any, state: dict[str, Any]) -> None:
    self.__dict__.update(state)


def _is_at_level(value: Any) -> bool:
    return hasattr(type(value), _APPLY)


def is_module(value: Any) -> bool:
    """Returns whether a value is a module that holds its own arrays: NNX's or Equinox's."""
    return is_nnx_module(value) or is_framework_type(value, "equinox", "Module")


def apply_of(fn: Any, args: Sequence[Any]) -> tuple[Callable[..., Any], Sequence[Any]]:
    """Returns a module's call as a function of the module, with it first; else what is given."""
    if _is_at_level(fn):
        return getattr(type(fn), _APPLY), (fn, *args)
    return (_calling(type(fn)), (fn, *args)) if is_module(fn) else (fn, args)


def module_at(module: Any, policy: Policy) -> Any:
    """Returns a copy of a module that is stored and called as a policy says.

    Args:
        module: An NNX or Equinox module, which is left as it is.
        policy: What is cast.

    Raises:
        TypeError: The module cannot be called.
        ValueError: The module, or one in it where this one computes in half, is at a level
            already, or a parameter is half where the policy stores float32.
    """
    if _is_at_level(module):
        raise ValueError(f"the model {type(module).__name__} was initialized twice")
    if not callable(module):
        raise TypeError(
            f"the model {type(module).__name__} has no __call__, which is what a module at a "
            "level casts: of a method write amp.initialize(lambda model, x: model.forward(x), ...)"
        )
    _check_parts(module, policy)
    types = nnx_types(module) if is_nnx_module(module) else None
    made = policy.cast_to_param(module, types)
    set_class(made, _class_at(type(module), policy))  # the one made, for it may refer to itself
    return made


def _check_parts(module: Any, policy: Policy) -> None:
    """Raises ValueError where a part at a level would meet parameters that were cast before."""
    if not policy.computes_in_half:
        return
    if is_nnx_module(module):
        from flax import nnx

        nodes = [node for _, node in nnx.iter_graph(module)]
    else:
        nodes = jax.tree.leaves(module, is_leaf=_is_at_level)
    part = next(filter(_is_at_level, nodes), None)
    if part is not None:
        raise ValueError(
            f"the model {type(module).__name__} holds {type(part).__name__}, which was initialized "
            "before: initialize the whole alone, or call it as it is"
        )


@functools.cache  # a graph definition or a tree is equal where its class is
def _class_at(cls: type, policy: Policy) -> type:
    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(
            {_PLAIN: cls, _APPLY: MixedPrecisionApply(_calling(cls), policy)},
            __call__=_call,
            __reduce__=_reduce,
            __setstate__=_setstate,
            __module__=cls.__module__,
            __qualname__=cls.__qualname__,
            __doc__=cls.__doc__,
        )
        if not hasattr(cls, "policy"):  # an actor's is its own
            namespace["policy"] = policy

    options = {} if getattr(cls, "_pytree__is_pytree", True) else {"pytree": False}
    return types.new_class(cls.__name__, (cls,), options, fill)


def _calling(cls: type) -> Callable[..., Any]:
    """Returns a class's call as a function of the module, under the name of its method."""

    @functools.wraps(cls.__call__)
    def apply(module: Any, *args: Any, **kwargs: Any) -> Any:
        level = type(module)
        with being(module, cls):
            outputs = cls.__call__(module, *args, **kwargs)
        return outputs if is_nnx_object(module) else _at(level, outputs)

    return apply


def _at(level: type, outputs: Any) -> Any:
    """Returns outputs with modules at a level: one that Equinox changes is another one."""

    def is_own(node: Any) -> bool:
        return type(node) is getattr(level, _PLAIN, None)

    def raised(node: Any) -> Any:
        if not is_own(node):
            return node
        made = object.__new__(level)
        made.__dict__.update(node.__dict__)
        return made

    return jax.tree.map(raised, outputs, is_leaf=is_own)


def _empty(cls: type, policy: Policy) -> Any:
    return object.__new__(_class_at(cls, policy))
