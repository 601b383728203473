"""Initializers whose variance follows from the fans of the kernel."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from jinit._known import known_arguments
from jinit.initializers.base import (
    RARE,
    Distribution,
    Initializer,
    is_complex,
    set_floats,
    set_tuples,
)
from jinit.initializers.distributions import normal, uniform
from jinit.initializers.fans import MODES, Axes, Mode, compute_fans
from jinit.initializers.polar import disc
from jinit.initializers.truncated import truncated_normal, truncated_std

__all__ = ["DISTRIBUTIONS", "Kind", "Scaling", "VarianceScaling", "variance_scaling"]

Kind = Literal["normal", "truncated_normal", "uniform"]

CUT = 2.0  # standard deviations, where JAX and Keras cut the normal


def _truncated(std: float, is_complex: bool) -> Distribution:
    wider = std / truncated_std(CUT, is_complex=is_complex)
    return truncated_normal(std=wider, low=-CUT, high=CUT, relative=True)


def _uniform(std: float, is_complex: bool) -> Distribution:
    limit = math.sqrt(3) * std
    return disc(math.sqrt(2) * std) if is_complex else uniform(low=-limit, high=limit)


DISTRIBUTIONS: Mapping[Kind, Callable[[float, bool], Distribution]] = MappingProxyType(
    {
        "normal": lambda std, is_complex: normal(std=std),
        "truncated_normal": _truncated,
        "uniform": _uniform,
    }
)
"""What has a given standard deviation, for real numbers or for complex ones."""


class Scaling(NamedTuple):
    """How the fans scale a distribution: its standard deviation is ``gain / sqrt(mode(fans))``.

    Attributes:
        gain: The factor, not negative.
        mode: What is made of the two fans.
        distribution: The name of the distribution.
    """

    gain: float
    mode: Mode
    distribution: Kind


@dataclass(frozen=True, repr=False)
class VarianceScaling(Initializer):
    r"""An initializer of mean 0 and standard deviation :math:`\text{gain} / \sqrt{\text{fan}}`.

    Attributes:
        in_axis: The axis or axes of the inputs in a shape, ``-2`` by default.
        out_axis: The axis or axes of the outputs, ``-1`` by default.
        batch_axis: The axis or axes along which kernels are stacked.
        fans: ``fan_in`` and ``fan_out`` of every shape, instead of those that its axes give; None
            in place of one leaves it to the axes.
    """

    in_axis: Axes = field(default=-2, kw_only=True, metadata=RARE)
    out_axis: Axes = field(default=-1, kw_only=True, metadata=RARE)
    batch_axis: Axes = field(default=(), kw_only=True, metadata=RARE)
    fans: tuple[float | None, float | None] | None = field(
        default=None, kw_only=True, metadata=RARE
    )

    def __post_init__(self) -> None:
        set_tuples(self, "in_axis", "out_axis", "batch_axis", "fans")
        _check_fans(self.fans)
        gain, mode, distribution = self.scaling()
        if gain < 0:
            raise ValueError(f"the gain must not be negative, got {gain}")
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; legal modes: {', '.join(MODES)}")
        if distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"unknown distribution {distribution!r}; "
                f"legal distributions: {', '.join(DISTRIBUTIONS)}"
            )

    @abstractmethod
    def scaling(self) -> Scaling:
        """Returns how the fans scale which distribution."""

    def shape_fans(self, shape: Sequence[int]) -> tuple[float, float]:
        """Returns the fans that the axes of a shape give."""
        return compute_fans(shape, self.in_axis, self.out_axis, self.batch_axis)

    def std(self, shape: Sequence[int]) -> float:
        """Returns the standard deviation of the entries of an array of ``shape``."""
        gain, mode, _ = self.scaling()
        # Only an empty array has a fan of 0; it has no entries to scale.
        return gain / math.sqrt(MODES[mode](_Fans(self, shape)) or 1)

    def resolve(self, shape: Sequence[int], dtype: DTypeLike | None = jnp.float32) -> Distribution:
        """Returns the distribution with the standard deviation of ``shape``."""
        return DISTRIBUTIONS[self.scaling().distribution](self.std(shape), is_complex(dtype))


class _Fans:
    """The fans of a shape, each computed when it is asked for: a vector has no default ones."""

    def __init__(self, initializer: VarianceScaling, shape: Sequence[int]) -> None:
        self._given = initializer.fans or (None, None)
        self._shape_fans = lambda: initializer.shape_fans(shape)

    @property
    def fan_in(self) -> float:
        return self._shape_fans()[0] if self._given[0] is None else self._given[0]

    @property
    def fan_out(self) -> float:
        return self._shape_fans()[1] if self._given[1] is None else self._given[1]


def _check_fans(fans: tuple[float | None, ...] | None) -> None:
    if fans is None:
        return
    if len(fans) != 2 or any(fan is not None and not 0 < fan < math.inf for fan in fans):
        raise ValueError(f"fans must be two positive numbers, got {fans}")


@known_arguments
@dataclass(frozen=True, repr=False)
class variance_scaling(VarianceScaling):
    r"""Draws with mean 0 and variance :math:`\text{scale} / \text{fan}`.

    Keras calls ``untruncated_normal`` what is called ``normal`` here and in JAX, and its
    ``normal`` is ``truncated_normal``: cut at two standard deviations and widened, so that the
    variance is as stated.

    Args:
        scale: The factor of the variance, not negative.
        mode: ``fan_in``, ``fan_out``, ``fan_avg`` or ``fan_geo_avg``.
        distribution: ``truncated_normal``, ``normal`` or ``uniform``.
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes; uniform complex numbers lie in a
        disc.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> variance_scaling(2.0, "fan_out", "normal").std((5, 8))
        0.5

    Source:
        ``jax.nn.initializers.variance_scaling``; the defaults are Keras's.
    """

    scale: float = 1.0
    mode: Mode = "fan_in"
    distribution: Kind = "truncated_normal"

    def __post_init__(self) -> None:
        set_floats(self, "scale")
        if self.scale < 0:
            raise ValueError(f"scale must not be negative, got {self.scale}")
        super().__post_init__()

    def scaling(self) -> Scaling:
        """Returns the root of the scale, and the other arguments."""
        return Scaling(math.sqrt(self.scale), self.mode, self.distribution)
