"""A table of defaults as a context manager, a decorator and a wrapper."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, cast, overload

import flax.linen as nn
from flax import nnx

from jinit.defaults.active import leave
from jinit.defaults.contexts import begin, constructing_class, wrapped_class
from jinit.defaults.refusals import advice, class_name, is_generator
from jinit.defaults.tables.layer_table import LayerTable

__all__ = ["LayerDefaults"]

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module | type[nn.Module] | type[nnx.Module])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LayerDefaults:
    """Defaults for the layers of a model: a context manager, a decorator and a wrapper.

    It can be entered again, in several tasks and threads; it holds in the task that entered it, and
    in those that begin inside.

    Attributes:
        table: Which field of which layer gets which value; ``print(defaults.table)`` shows it.
        name: The function that made the object, such as ``keras_defaults``.
        arguments: The arguments of that function by name.
    """

    table: LayerTable
    name: str
    arguments: Mapping[str, bool | float | None]

    def __enter__(self) -> Self:
        begin(self.table, self, lasts=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A coroutine that is thrown away is closed in whatever task runs at that moment.
        if not leave(self) and kind is not GeneratorExit:
            raise RuntimeError(
                f"{self!r} is left in a task or thread that did not enter it; contexts hold in "
                "the task that enters them, and in those that begin inside"
            ) from error

    @overload
    def __call__(self, function: M) -> M: ...

    @overload
    def __call__(self, function: Callable[P, T]) -> Callable[P, T]: ...

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorates a function: the defaults are active while it runs.

        Args:
            function: Usually ``model.init``, a function that constructs an NNX module, or a
                training step, inside or outside ``jax.jit``. A Linen module, or a class of modules
                of Linen or NNX, is wrapped: see ``wrap``.

        Returns:
            The function with the defaults active; a coroutine function stays one.

        Raises:
            TypeError: If it is not callable, or is a generator, which would run outside, a class
                that is not of modules, an NNX module that is constructed already, or a module of
                another library than Flax.

        Example:
            >>> from flax import nnx
            >>> from jinit import keras_defaults
            >>> @keras_defaults()
            ... class Net(nnx.Module):
            ...     def __init__(self, rngs):
            ...         self.norm = nnx.LayerNorm(2, rngs=rngs)
            >>> Net(nnx.Rngs(0)).norm.epsilon
            0.001
            >>> build = keras_defaults()(lambda: nnx.LayerNorm(2, rngs=nnx.Rngs(0)))
            >>> build().epsilon
            0.001
        """
        if _can_wrap(function):
            return self.wrap(cast(Any, function))
        if is_generator(function):
            raise TypeError(
                f"{self.name}() cannot decorate the generator {class_name(function)}, whose body "
                f"runs after the call; use 'with {self.name}():' inside it"
            )
        found = advice(function, self.name)
        if found or isinstance(function, type) or not callable(function):
            found = found or f"for a module use {self.name}().wrap(module)"
            raise TypeError(
                f"{self.name}() decorates a function such as model.init, got "
                f"{class_name(function)}; {found}"
            )

        @functools.wraps(function)
        def decorated(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await function(*args, **kwargs)

        return awaited if inspect.iscoroutinefunction(function) else decorated

    def wrap(self, module: M) -> M:
        """Returns the same module, with the defaults active whenever one of its methods runs.

        It is the form for models with norm layers: ``init`` and ``apply`` cannot disagree about
        epsilon and momentum. A class of NNX modules has them active in its constructor, since an
        NNX layer keeps what it was constructed with.

        Args:
            module: A Linen module that is not bound, or a class of modules of Linen or NNX.

        Returns:
            A module of a subclass with the same name, fields and parameters, or that subclass. It
            cannot be pickled, unless the subclass stands under its name, as one that is decorated
            does; it can be copied and cloned. Wrap the module anew instead.

        Raises:
            TypeError: If it is not a Linen module or a class of modules.
            ValueError: If it is bound already.

        Example:
            >>> import flax.linen as nn, jax, jax.numpy as jnp
            >>> from jinit import keras_defaults
            >>> model = keras_defaults().wrap(nn.LayerNorm())
            >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
            >>> round(float(model.apply(variables, jnp.array([-0.1, 0.1]))[1]), 3)
            0.953
            >>> from flax import nnx
            >>> Norm = keras_defaults().wrap(nnx.LayerNorm)
            >>> Norm(2, rngs=nnx.Rngs(0)).epsilon
            0.001
        """
        if not _can_wrap(module):
            found = advice(module, self.name) or f"for a function use {self.name}()(function)"
            raise TypeError(
                f"{self.name}().wrap takes a flax.linen module, got {class_name(module)}; {found}"
            )
        if _is_nnx_class(module):
            return cast(Any, constructing_class(cast(Any, module), self.table))
        if isinstance(module, type):
            return cast(Any, wrapped_class(module, self.table))
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


def _can_wrap(value: object) -> bool:
    cls = value if isinstance(value, type) else type(value)
    return issubclass(cls, nn.Module) or _is_nnx_class(value)


def _is_nnx_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, nnx.Module)
