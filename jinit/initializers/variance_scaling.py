"""Initializers whose variance follows from the fans of the kernel: Xavier, Kaiming, LeCun."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinit.initializers.base import Initializer, set_floats
from jinit.initializers.distributions import normal, uniform
from jinit.initializers.fans import MODES, Axes, Mode, compute_fans
from jinit.initializers.gains import calculate_gain

__all__ = [
    "VarianceScaling",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "xavier_normal",
    "xavier_uniform",
]


@dataclass(frozen=True, repr=False)
class VarianceScaling(Initializer):
    r"""An initializer of mean 0 and standard deviation :math:`\text{gain} / \sqrt{\text{fan}}`.

    Attributes:
        in_axis: The axis or axes of the inputs in a shape, ``-2`` by default.
        out_axis: The axis or axes of the outputs, ``-1`` by default.
        batch_axis: The axis or axes along which kernels are stacked.
        fans: ``fan_in`` and ``fan_out`` of every shape, instead of those that its axes give.
    """

    in_axis: Axes = field(default=-2, kw_only=True)
    out_axis: Axes = field(default=-1, kw_only=True)
    batch_axis: Axes = field(default=(), kw_only=True)
    fans: tuple[float, float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("in_axis", "out_axis", "batch_axis", "fans"):
            value = getattr(self, name)
            if isinstance(value, Sequence):
                object.__setattr__(self, name, tuple(value))
        if self.fans is not None and not (len(self.fans) == 2 and min(self.fans) > 0):
            raise ValueError(f"fans must be two positive numbers, got {self.fans}")
        _, mode = self._scaling()
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; legal modes: {', '.join(MODES)}")

    @abstractmethod
    def _scaling(self) -> tuple[float, Mode]:
        """Returns the gain and the mode."""

    def std(self, shape: Sequence[int]) -> float:
        """Returns the standard deviation of the entries of an array of ``shape``."""
        axes = self.in_axis, self.out_axis, self.batch_axis
        fans = self.fans or compute_fans(shape, *axes)
        gain, mode = self._scaling()
        # Only an empty array has a fan of 0; it has no entries to scale.
        return gain / math.sqrt(MODES[mode](*fans) or 1)


class _Normal(VarianceScaling):
    def distribution(self, shape: Sequence[int]) -> normal:
        """Returns the normal distribution with the standard deviation of ``shape``."""
        return normal(0.0, self.std(shape))


class _Uniform(VarianceScaling):
    def distribution(self, shape: Sequence[int]) -> uniform:
        """Returns the symmetric uniform distribution with the standard deviation of ``shape``."""
        limit = math.sqrt(3) * self.std(shape)
        return uniform(-limit, limit)


@dataclass(frozen=True, repr=False)
class _Xavier(VarianceScaling):
    gain: float = 1.0

    def __post_init__(self) -> None:
        set_floats(self, "gain")
        super().__post_init__()

    def _scaling(self) -> tuple[float, Mode]:
        return self.gain, "fan_avg"


@dataclass(frozen=True, repr=False)
class _Kaiming(VarianceScaling):
    negative_slope: float | None = None
    mode: Mode = "fan_in"
    nonlinearity: str = "leaky_relu"

    def _scaling(self) -> tuple[float, Mode]:
        # Kaiming's own default is a slope of 0, not calculate_gain's 0.01.
        default = 0.0 if self.nonlinearity == "leaky_relu" else None
        slope = default if self.negative_slope is None else self.negative_slope
        return calculate_gain(self.nonlinearity, slope), self.mode


class _Lecun(VarianceScaling):
    def _scaling(self) -> tuple[float, Mode]:
        return 1.0, "fan_in"


class xavier_normal(_Xavier, _Normal):
    r"""Draws from :math:`N(0, \text{gain}^2 \cdot 2 / (\text{fan\_in} + \text{fan\_out}))`.

    The normal is not truncated; that of ``jax.nn.initializers.glorot_normal`` is.

    Args:
        gain: A factor of the standard deviation, see ``calculate_gain``.
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> round(xavier_normal().std((3, 3, 32, 64)), 5)
        0.04811

    Source:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural
        networks, 2010; ``torch.nn.init.xavier_normal_``.
    """


class xavier_uniform(_Xavier, _Uniform):
    r"""Draws from :math:`U(-l, l)`, :math:`l = \text{gain}\sqrt{3/\text{fan\_avg}}`.

    The average is that of both fans. With gain 1 it is Keras's ``GlorotUniform``, the default
    of Keras's layers.

    Args:
        gain: A factor of the standard deviation, see ``calculate_gain``.
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> round(xavier_uniform().distribution((3, 3, 32, 64)).high, 5)
        0.08333

    Source:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural
        networks, 2010; ``torch.nn.init.xavier_uniform_``.
    """


class kaiming_normal(_Kaiming, _Normal):
    r"""Draws from :math:`N(0, \text{gain}^2 / \text{fan})`, the gain that of the nonlinearity.

    The normal is not truncated; that of ``jax.nn.initializers.he_normal`` is.

    Args:
        negative_slope: The slope of leaky_relu (torch's ``a``); None is 0, the gain
            :math:`\sqrt 2`. No other nonlinearity takes one.
        mode: ``fan_in`` keeps the variance of activations, ``fan_out`` that of gradients;
            ``fan_avg`` and ``fan_geo_avg`` lie between.
        nonlinearity: A name that ``calculate_gain`` knows.
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> kaiming_normal(mode="fan_out", nonlinearity="relu")
        kaiming_normal(negative_slope=None, mode='fan_out', nonlinearity='relu')
        >>> kaiming_normal().std((2, 5))
        1.0

    Source:
        He et al., Delving deep into rectifiers, 2015; ``torch.nn.init.kaiming_normal_``.
    """


class kaiming_uniform(_Kaiming, _Uniform):
    r"""Draws from :math:`U(-l, l)`, :math:`l = \text{gain}\sqrt{3/\text{fan}}`.

    Args:
        negative_slope: The slope of leaky_relu (torch's ``a``); None is 0, the gain
            :math:`\sqrt 2`. No other nonlinearity takes one.
        mode: ``fan_in`` keeps the variance of activations, ``fan_out`` that of gradients;
            ``fan_avg`` and ``fan_geo_avg`` lie between.
        nonlinearity: A name that ``calculate_gain`` knows.
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> round(kaiming_uniform().distribution((24, 8)).high, 6)
        0.5

    Source:
        He et al., Delving deep into rectifiers, 2015; ``torch.nn.init.kaiming_uniform_``.
    """


class lecun_normal(_Lecun, _Normal):
    r"""Draws from :math:`N(0, 1 / \text{fan\_in})`.

    The normal is not truncated; that of ``jax.nn.initializers.lecun_normal``, the default of
    Flax's layers, is.

    Args:
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> lecun_normal().std((16, 3))
        0.25

    Source:
        LeCun et al., Efficient backprop, 1998.
    """


class lecun_uniform(_Lecun, _Uniform):
    r"""Draws from :math:`U(-l, l)`, :math:`l = \sqrt{3/\text{fan\_in}}`.

    Args:
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> round(lecun_uniform().distribution((12, 3)).high, 6)
        0.5

    Source:
        LeCun et al., Efficient backprop, 1998.
    """
