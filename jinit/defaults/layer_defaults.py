"""The public face: Keras's defaults as a context manager, a decorator and a wrapper."""

import contextlib
import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import flax.linen as nn

from jinit.defaults.linen import applied, wrapped_class
from jinit.defaults.table import LayerTable, keras_table

__all__ = ["LayerDefaults", "keras_defaults"]

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
        name: The function that made the object.
        arguments: The arguments of that function by name.
    """

    table: LayerTable
    name: str
    arguments: Mapping[str, Any]

    def __enter__(self) -> Self:
        context = applied(self.table)
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
            TypeError: If it is not callable, or is a module or a class, whose methods would run
                outside.
        """
        if isinstance(function, nn.Module | type) or not callable(function):
            raise TypeError(
                f"{self.name}() decorates a function such as model.init, got "
                f"{_name(function)}; for a module use {self.name}().wrap(module)"
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
            >>> model = keras_defaults().wrap(nn.LayerNorm())
            >>> variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
            >>> round(float(model.apply(variables, jnp.array([-0.1, 0.1]))[1]), 3)
            0.953
        """
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"{self.name}().wrap takes a flax.linen module, got {_name(module)}; "
                f"for a function use {self.name}()(function)"
            )
        if module.scope is not None:
            raise ValueError(
                f"{self.name}().wrap takes a module that is not bound, got a bound "
                f"{_name(module)}; wrap it before init, apply or bind"
            )
        fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.init}
        return wrapped_class(type(module), self.table)(**{**fields, "parent": None})

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({arguments})"


def keras_defaults(
    parameter_initialization: bool = True,
    batchnorm_momentum: float | None = 0.99,
    norm_epsilon: float | None = 1e-3,
) -> LayerDefaults:
    r"""Gives Flax's layers the defaults of Keras.

    Kernels of Dense, DenseGeneral (and with it attention), Conv, ConvLocal and ConvTranspose are
    drawn from :math:`U(-l, l)`, :math:`l = \sqrt{6 / (\text{fan\_in} + \text{fan\_out})}`,
    embeddings from U(-0.05, 0.05). Norm layers take Keras's epsilon, BatchNorm its momentum.
    What was passed to a layer explicitly is never replaced; only the default object itself,
    passed explicitly, cannot be told from nothing, and a layer that was pickled and loaded counts
    as explicit.

    Used as ``with keras_defaults(): ...``, as ``keras_defaults()(model.init)``, and as
    ``keras_defaults().wrap(model)``. Epsilon and momentum count when a layer is applied: with
    the first two forms ``apply`` must run inside as well, with ``wrap`` it always does. Of
    nested contexts the innermost alone is in force. A context belongs to its thread; functions
    that were traced under other defaults are traced again.

    Args:
        parameter_initialization: Whether parameters are drawn as in Keras.
        batchnorm_momentum: The decay of BatchNorm's running statistics, in [0, 1] (torch's
            momentum is 1 minus this); None leaves Flax's.
        norm_epsilon: What BatchNorm, LayerNorm, GroupNorm and InstanceNorm add to the variance,
            positive; None leaves Flax's.

    Returns:
        The defaults, to be entered, called on a function, or wrapped around a module.

    Raises:
        ValueError: If the momentum or epsilon is out of range.
        TypeError: If ``parameter_initialization`` is no bool, but the function to decorate.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> with keras_defaults():
        ...     variables = nn.Dense(128).init(jax.random.key(0), jnp.ones((1, 64)))
        >>> limit = (6 / (64 + 128)) ** 0.5
        >>> bool(0.99 * limit < abs(variables["params"]["kernel"]).max() < limit)
        True

    Source:
        Keras 3.15's layers.
    """
    if not isinstance(parameter_initialization, bool):
        raise TypeError(
            f"parameter_initialization is a bool, got {_name(parameter_initialization)}; "
            "to decorate a function write keras_defaults()(function)"
        )
    arguments = {
        "parameter_initialization": parameter_initialization,
        "batchnorm_momentum": _number(
            "batchnorm_momentum", batchnorm_momentum, "a decay in [0, 1]", lambda m: 0 <= m <= 1
        ),
        "norm_epsilon": _number(
            "norm_epsilon", norm_epsilon, "a positive number", lambda e: 0 < e < math.inf
        ),
    }
    return LayerDefaults(keras_table(**arguments), "keras_defaults", arguments)


def _number(
    name: str, value: float | None, meaning: str, legal: Callable[[float], bool]
) -> float | None:
    """Returns an optional argument as a Python float, once it is found legal."""
    if value is None:
        return None
    if not legal(value):
        raise ValueError(f"{name} is {meaning} or None, got {value!r}")
    return float(value)


def _name(value: object) -> str:
    """Names a class as itself and anything else by its class."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
