"""Modules of NNX and Equinox at a level: copies of a class that calls at that level.

``module_at(module, policy)`` makes an object of a subclass that overrides ``__call__`` alone. So it
is a module of the same kind, with the same fields and paths; what the framework does with modules
(transforms, splitting, saving) it does with this one.
"""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

from jinit._trees import is_framework_type
from jinit.amp.apply import MixedPrecisionApply
from jinit.amp.casting.module_types import nnx_types
from jinit.amp.policy import Policy

__all__ = ["apply_of", "is_module", "module_at"]


class _AtLevel:
    """What a module's class has besides its own: its policy, and calls at that level."""

    policy: Policy
    _plain: type
    _apply: MixedPrecisionApply

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module at its level."""
        return type(self)._apply(self, *args, **kwargs)

    def __reduce__(self) -> Any:
        # The class is made as the program runs: by its name, pickle would not find it.
        return _empty, (self._plain, self.policy), self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def is_module(value: Any) -> bool:
    """Returns whether a value is a module that holds its own arrays: NNX's or Equinox's."""
    return is_framework_type(value, "flax.nnx", "Module") or is_framework_type(
        value, "equinox", "Module"
    )


def apply_of(fn: Any, args: Sequence[Any]) -> tuple[Callable[..., Any], Sequence[Any]]:
    """Returns a module's call as a function of the module, with it first; else what is given."""
    if isinstance(fn, _AtLevel):
        return type(fn)._apply, (fn, *args)
    return (_calling(type(fn)), (fn, *args)) if is_module(fn) else (fn, args)


def module_at(module: Any, policy: Policy) -> Any:
    """Returns a copy of a module that is stored and called as a policy says.

    Args:
        module: An NNX or Equinox module, which is left as it is.
        policy: What is cast.

    Raises:
        ValueError: The module is at a level already, or a parameter is half where the policy
            stores float32.
    """
    if isinstance(module, _AtLevel):
        raise ValueError(f"the model {type(module).__name__} was initialized twice")
    made = _empty(type(module), policy)
    types = nnx_types(module) if is_framework_type(module, "flax.nnx", "Module") else None
    made.__dict__.update(policy.cast_to_param(module, types).__dict__)
    return made


@functools.cache  # a graph definition or a tree is equal where its class is
def _class_at(cls: type, policy: Policy) -> type:
    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(
            policy=policy,
            _plain=cls,
            _apply=MixedPrecisionApply(_calling(cls), policy),
            __module__=cls.__module__,
            __qualname__=cls.__qualname__,
            __doc__=cls.__doc__,
        )

    return types.new_class(cls.__name__, (_AtLevel, cls), exec_body=fill)


def _calling(cls: type) -> Callable[..., Any]:
    """Returns a class's call as a function of the module, under the name of its method."""

    @functools.wraps(cls.__call__)
    def apply(module: Any, *args: Any, **kwargs: Any) -> Any:
        return cls.__call__(module, *args, **kwargs)

    return apply


def _empty(cls: type, policy: Policy) -> Any:
    return object.__new__(_class_at(cls, policy))
