"""A table of defaults as a context manager, a decorator and a wrapper."""

import contextlib
import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import flax.linen as nn

from jinit.defaults.contexts import applied, wrapped_class
from jinit.defaults.table import LayerTable

__all__ = ["LayerDefaults", "class_name"]

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class _Entered(threading.local):
    """The contexts that a thread is in, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[contextlib.AbstractContextManager] = []


_entered = _Entered()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerDefaults:
    """Defaults for the layers of a model: a context manager, a decorator and a wrapper.

    It can be entered again and from several threads; it holds in the thread that entered it.

    Attributes:
        table: Which field of which layer gets which value; ``print(defaults.table)`` shows it.
        name: The function that made the object, such as ``keras_defaults``.
        arguments: The arguments of that function by name.
    """

    table: LayerTable
    name: str
    arguments: Mapping[str, Any]

    def __enter__(self) -> Self:
        context = applied(self.table, lasts=False)
        context.__enter__()
        _entered.stack.append(context)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _entered.stack.pop().__exit__(kind, error, trace)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Decorates a function: the defaults hold while it runs.

        Args:
            function: Usually ``model.init``, or a training step, inside or outside ``jax.jit``.

        Returns:
            The function with the defaults in force.

        Raises:
            TypeError: If it is not callable, or is a module, a class or a generator, which would
                run outside.
        """
        if inspect.isgeneratorfunction(function):
            raise TypeError(
                f"{self.name}() cannot decorate the generator {class_name(function)}, whose body "
                f"runs after the call; use 'with {self.name}():' inside it"
            )
        if isinstance(function, nn.Module | type) or not callable(function):
            raise TypeError(
                f"{self.name}() decorates a function such as model.init, got "
                f"{class_name(function)}; for a module use {self.name}().wrap(module)"
            )

        @functools.wraps(function)
        def decorated(*args: P.args, **kwargs: P.kwargs) -> T:
            with self:
                return function(*args, **kwargs)

        return decorated

    def wrap(self, module: M) -> M:
        """Returns the same module, with the defaults in force whenever one of its methods runs.

        It is the form for models with norm layers: ``init`` and ``apply`` cannot disagree about
        epsilon and momentum.

        Args:
            module: A Linen module that is not bound.

        Returns:
            A module of a subclass with the same name, fields and parameters. It cannot be
            pickled, though copied and cloned; wrap the module anew instead.

        Raises:
            TypeError: If it is not a Linen module.
            ValueError: If it is bound already.

        Example:
            >>> import flax.linen as nn, jax, jax.numpy as jnp
            >>> from jinit import keras_defaults
            >>> model = keras_defaults().wrap(nn.LayerNorm())
            >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
            >>> round(float(model.apply(variables, jnp.array([-0.1, 0.1]))[1]), 3)
            0.953
        """
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"{self.name}().wrap takes a flax.linen module, got {class_name(module)}; "
                f"for a function use {self.name}()(function)"
            )
        if module.scope is not None:
            raise ValueError(
                f"{self.name}().wrap takes a module that is not bound, got a bound "
                f"{class_name(module)}; wrap it before init, apply or bind"
            )
        fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.init}
        return wrapped_class(type(module), self.table)(**{**fields, "parent": None})

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({arguments})"


def class_name(value: object) -> str:
    """Names a class as itself and anything else by its class."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
