"""Initializers made from others."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jinit._arithmetic import is_float_dtype
from jinit._known import known_arguments
from jinit.initializers.base import Affine, Distribution, Initializer, Unit, set_floats
from jinit.initializers.variance_scaling import VarianceScaling
from jinit.typing import Key

__all__ = ["AnyInitializer", "as_initializer", "draws", "scaled", "with_fan"]

AnyInitializer = Initializer | Callable[..., Any]
"""One of jinit, or any function ``(key, shape, dtype)``, such as those of ``jax.nn``."""


@dataclass(frozen=True, repr=False)
class _Foreign(Unit):
    """What another library's function draws."""

    init: Callable[..., Any]

    def sample(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Calls the function."""
        values = self.init(key, shape, dtype)
        if not isinstance(values, jax.Array):
            raise TypeError(
                f"{self.init!r} returned a {type(values).__name__} and not an array; pass the "
                "initializer that it was made from, without with_partitioning or the like"
            )
        return values

    def __repr__(self) -> str:
        return getattr(self.init, "__qualname__", repr(self.init))


def as_initializer(init: AnyInitializer) -> Initializer:
    """Makes a function ``(key, shape, dtype)`` an initializer like those of jinit.

    Args:
        init: An initializer of jinit, which is returned as it is, or a function that JAX can
            trace and hash.

    Returns:
        An initializer that draws the same in float32, casts last, and takes an ``out_sharding``.

    Raises:
        TypeError: If it cannot be called so, or is a class of jinit, which makes initializers.

    Example:
        >>> as_initializer(jax.nn.initializers.ones)(None, (2,), "bfloat16")
        Array([1, 1], dtype=bfloat16)
    """
    if isinstance(init, Initializer):
        return init
    if isinstance(init, type) and issubclass(init, Initializer):
        raise TypeError(f"{init.__name__} makes initializers: write {init.__name__}()")
    if not callable(init):
        raise TypeError(f"an initializer is a function of key, shape and dtype, got {init!r}")
    if not draws(init):
        name = getattr(init, "__name__", repr(init))
        raise TypeError(
            f"an initializer is a function of key, shape and dtype, got {name}, which is not "
            f"called with these; if it makes an initializer, call it: {name}()"
        )
    return _Foreign(init)


def draws(init: Callable[..., Any]) -> bool:
    """Returns whether a function can be called with a key, a shape and a dtype."""
    try:
        inspect.signature(init).bind(None, (), None)
    except TypeError:
        return False
    except ValueError:  # a builtin does not say
        return True
    return True


@known_arguments
@dataclass(frozen=True, repr=False)
class scaled(Initializer):
    """Multiplies what an initializer draws by a number.

    Args:
        init: Any initializer, of jinit or a function ``(key, shape, dtype)``.
        scale: The factor, such as ``1 / sqrt(2 * layers)`` for the last layer of residual blocks.

    Returns:
        An initializer for floating-point and complex dtypes.

    Raises:
        ValueError: If the scale is not finite.
        TypeError: If ``init`` cannot be called.

    Example:
        >>> from jinit.initializers import constant
        >>> scaled(constant(3.0), 0.5)(None, (2,))
        Array([1.5, 1.5], dtype=float32)

    Source:
        The ``scale`` of some of ``jax.nn.initializers``, for all of them.
    """

    init: AnyInitializer
    scale: float

    def __post_init__(self) -> None:
        set_floats(self, "scale")
        if self.dtype is None:
            object.__setattr__(self, "dtype", as_initializer(self.init).dtype)

    def resolve(self, shape: Sequence[int], dtype: DTypeLike | None = jnp.float32) -> Distribution:
        """Returns the distribution of the other initializer, multiplied."""
        return _Multiplied(as_initializer(self.init).resolve(shape, dtype), self.scale)


@dataclass(frozen=True, repr=False)
class _Multiplied(Distribution):
    """A distribution times a number."""

    base: Distribution
    scale: float

    def check(self, key: Key | None, shape: tuple[int, ...], dtype: jnp.dtype) -> None:
        """Raises what the distribution raises, and for integers."""
        if not is_float_dtype(dtype):
            raise TypeError(f"{self!r} draws floating-point numbers, it cannot make a {dtype}")
        self.base.check(key, shape, dtype)

    def unit(self) -> Unit:
        """Returns that of the distribution."""
        return self.base.unit()

    def affine(self, dtype: jnp.dtype) -> Affine:
        """Returns the numbers of the distribution, multiplied."""
        numbers = self.base.affine(dtype)
        factor = 1 if numbers.factor is None else numbers.factor
        factor, *others = (
            None if n is None else self.scale * n for n in numbers._replace(factor=factor)
        )
        summand, *bounds = others
        # A negative factor makes the lower bound the upper one.
        return Affine(factor, summand, *(bounds[::-1] if self.scale < 0 else bounds))

    def __repr__(self) -> str:
        return f"scaled({self.base!r}, {self.scale})"


def with_fan(
    init: Initializer, *, fan_in: float | None = None, fan_out: float | None = None
) -> Initializer:
    """Gives an initializer that scales with the fans other fans than the shape's.

    For a bias that is drawn with its kernel's fan_in, or for a kernel of which several are summed.

    Args:
        init: An initializer such as ``lecun_normal()``, or one of these ``scaled``.
        fan_in: The input fan; None leaves that of the shape.
        fan_out: The output fan; None leaves that of the shape.

    Returns:
        The initializer with the fans. A fan that its mode does not need is never computed, so
        a shape may lack the axis.

    Raises:
        TypeError: If the initializer does not look at fans.
        ValueError: If no fan is given, or one is not a positive number.

    Example:
        >>> from jinit.initializers import lecun_normal
        >>> with_fan(lecun_normal(), fan_in=64).std((10,))
        0.125

    Source:
        torch's biases, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    """
    if fan_in is None and fan_out is None:
        raise ValueError("with_fan needs a fan: give fan_in, fan_out or both")
    init = as_initializer(init)
    if isinstance(init, scaled):
        inner = with_fan(as_initializer(init.init), fan_in=fan_in, fan_out=fan_out)
        return dataclasses.replace(init, init=inner)
    if not isinstance(init, VarianceScaling):
        raise TypeError(
            f"{init!r} does not look at fans; those of jinit that do are variance_scaling, "
            "xavier, kaiming, lecun and bilinear"
        )
    before = init.fans or (None, None)
    given = (fan_in, fan_out)
    fans = tuple(old if new is None else new for old, new in zip(before, given, strict=True))
    return dataclasses.replace(init, fans=fans)
