"""The initializers of Xavier, Kaiming and LeCun, named after their authors.

All arguments are keyword-only: by position torch gives gains and slopes, JAX axes, and Keras seeds.
"""

from abc import abstractmethod
from dataclasses import dataclass, field

from jinit._known import known_arguments
from jinit.initializers.base import RARE, set_floats
from jinit.initializers.fans import Mode
from jinit.initializers.gains import Nonlinearity, calculate_gain
from jinit.initializers.variance_scaling import Kind, Scaling, VarianceScaling

__all__ = [
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "xavier_normal",
    "xavier_uniform",
]


class _Named(VarianceScaling):
    @abstractmethod
    def _kind(self) -> Kind:
        """Returns which distribution is scaled."""


@dataclass(frozen=True, repr=False)
class _Normal(_Named):
    truncated: bool = field(default=False, kw_only=True, metadata=RARE)

    def _kind(self) -> Kind:
        return "truncated_normal" if self.truncated else "normal"


class _Uniform(_Named):
    def _kind(self) -> Kind:
        return "uniform"


@dataclass(frozen=True, repr=False)
class _Xavier(_Named):
    gain: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        set_floats(self, "gain")
        super().__post_init__()

    def scaling(self) -> Scaling:
        """Returns the given gain, over the average fan."""
        return Scaling(self.gain, "fan_avg", self._kind())


@dataclass(frozen=True, repr=False)
class _Kaiming(_Named):
    negative_slope: float | None = field(default=None, kw_only=True)
    mode: Mode = field(default="fan_in", kw_only=True)
    nonlinearity: Nonlinearity = field(default="leaky_relu", kw_only=True)

    def scaling(self) -> Scaling:
        """Returns the gain of the nonlinearity, over the given fan."""
        # Kaiming's own default is a slope of 0, not calculate_gain's 0.01.
        default = 0.0 if self.nonlinearity == "leaky_relu" else None
        slope = default if self.negative_slope is None else self.negative_slope
        return Scaling(calculate_gain(self.nonlinearity, slope), self.mode, self._kind())


class _Lecun(_Named):
    def scaling(self) -> Scaling:
        """Returns gain 1, over the input fan."""
        return Scaling(1.0, "fan_in", self._kind())


@known_arguments
@dataclass(frozen=True, repr=False)
class xavier_normal(_Xavier, _Normal):
    r"""Draws from :math:`N(0, \text{gain}^2 \cdot 2 / (\text{fan\_in} + \text{fan\_out}))`.

    The normal is not truncated, as in torch; ``truncated=True`` draws what JAX and Keras call
    ``glorot_normal``. Here that name is a synonym.

    Args:
        gain: A factor of the standard deviation, see ``calculate_gain``.
        truncated: Whether the normal is cut at two standard deviations, and widened so that the
            variance stays; keyword-only.
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> round(xavier_normal().std((3, 3, 32, 64)), 5)
        0.04811

    Source:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural
        networks, 2010; ``torch.nn.init.xavier_normal_``.
    """


@known_arguments
@dataclass(frozen=True, repr=False)
class xavier_uniform(_Xavier, _Uniform):
    r"""Draws from :math:`U(-l, l)`, :math:`l = \text{gain}\sqrt{3/\text{fan\_avg}}`.

    The average is that of both fans. With gain 1 it is Keras's ``GlorotUniform``, the default
    of Keras's layers; ``glorot_uniform`` is a synonym.

    Args:
        gain: A factor of the standard deviation, see ``calculate_gain``.
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> round(xavier_uniform().resolve((3, 3, 32, 64)).high, 5)
        0.08333

    Source:
        Glorot and Bengio, Understanding the difficulty of training deep feedforward neural
        networks, 2010; ``torch.nn.init.xavier_uniform_``.
    """


@known_arguments
@dataclass(frozen=True, repr=False)
class kaiming_normal(_Kaiming, _Normal):
    r"""Draws from :math:`N(0, \text{gain}^2 / \text{fan})`, the gain that of the nonlinearity.

    The normal is not truncated, as in torch; ``truncated=True`` draws what JAX and Keras call
    ``he_normal``. Here that name is a synonym.

    Args:
        negative_slope: The slope of leaky_relu (torch's ``a``); None is 0, the gain
            :math:`\sqrt 2`. For elu it is alpha; no other nonlinearity takes one.
        mode: ``fan_in`` keeps the variance of activations, ``fan_out`` that of gradients;
            ``fan_avg`` and ``fan_geo_avg`` lie between.
        nonlinearity: A name that ``calculate_gain`` knows, or a function that it measures.
        truncated: Whether the normal is cut at two standard deviations, and widened so that the
            variance stays; keyword-only.
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes.

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


@known_arguments
@dataclass(frozen=True, repr=False)
class kaiming_uniform(_Kaiming, _Uniform):
    r"""Draws from :math:`U(-l, l)`, :math:`l = \text{gain}\sqrt{3/\text{fan}}`.

    By default it is what JAX and Keras call ``he_uniform``, which is a synonym here.

    Args:
        negative_slope: The slope of leaky_relu (torch's ``a``); None is 0, the gain
            :math:`\sqrt 2`. For elu it is alpha; no other nonlinearity takes one.
        mode: ``fan_in`` keeps the variance of activations, ``fan_out`` that of gradients;
            ``fan_avg`` and ``fan_geo_avg`` lie between.
        nonlinearity: A name that ``calculate_gain`` knows, or a function that it measures.
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> round(kaiming_uniform().resolve((24, 8)).high, 6)
        0.5

    Source:
        He et al., Delving deep into rectifiers, 2015; ``torch.nn.init.kaiming_uniform_``.
    """


@known_arguments
@dataclass(frozen=True, repr=False)
class lecun_normal(_Lecun, _Normal):
    r"""Draws from :math:`N(0, 1 / \text{fan\_in})`.

    The normal is not truncated; ``truncated=True`` draws what JAX and Keras call
    ``lecun_normal``, the default of Flax's layers.

    Args:
        truncated: Whether the normal is cut at two standard deviations, and widened so that the
            variance stays; keyword-only.
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> lecun_normal().std((16, 3))
        0.25

    Source:
        LeCun et al., Efficient backprop, 1998.
    """


@known_arguments
@dataclass(frozen=True, repr=False)
class lecun_uniform(_Lecun, _Uniform):
    r"""Draws from :math:`U(-l, l)`, :math:`l = \sqrt{3/\text{fan\_in}}`.

    Args:
        in_axis, out_axis, batch_axis, fans: Where the fans come from, see ``VarianceScaling``;
            keyword-only.

    Returns:
        An initializer for floating-point and complex dtypes.

    Raises:
        ValueError: If an argument is out of range, or when called with a shape without the axes.

    Example:
        >>> round(lecun_uniform().resolve((12, 3)).high, 6)
        0.5

    Source:
        LeCun et al., Efficient backprop, 1998.
    """


glorot_normal = xavier_normal
glorot_uniform = xavier_uniform
he_normal = kaiming_normal
he_uniform = kaiming_uniform
