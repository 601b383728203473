"""Gains: the factor by which an initializer makes up for what a nonlinearity takes away."""

import difflib
import math
import numbers
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["GAINS", "calculate_gain"]

GAINS: Mapping[str, float] = MappingProxyType(
    {
        "linear": 1.0,
        "conv1d": 1.0,
        "conv2d": 1.0,
        "conv3d": 1.0,
        "conv_transpose1d": 1.0,
        "conv_transpose2d": 1.0,
        "conv_transpose3d": 1.0,
        "sigmoid": 1.0,
        "tanh": 5 / 3,
        "relu": math.sqrt(2),
        "selu": 3 / 4,
    }
)
"""The gain of each nonlinearity that has no parameter; ``leaky_relu`` has one."""

_LEGAL = (*GAINS, "leaky_relu")


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    r"""Returns the recommended gain of a nonlinearity.

    1 for the linear maps and sigmoid, 5/3 for tanh, :math:`\sqrt 2` for relu, 3/4 for selu, and
    :math:`\sqrt{2 / (1 + \text{negative\_slope}^2)}` for leaky_relu.

    Args:
        nonlinearity: ``linear``, ``conv1d`` to ``conv3d``, ``conv_transpose1d`` to
            ``conv_transpose3d``, ``sigmoid``, ``tanh``, ``relu``, ``leaky_relu`` or ``selu``.
        param: The negative slope of leaky_relu, 0.01 when it is None. No other takes one.

    Returns:
        The gain, a positive float.

    Raises:
        ValueError: If the name is unknown, or a parameter is given to a nonlinearity without one.
        TypeError: If the negative slope is not a number.

    Example:
        >>> calculate_gain("tanh"), round(calculate_gain("leaky_relu", 0.2), 4)
        (1.6666666666666667, 1.3868)

    Source:
        ``torch.nn.init.calculate_gain``, which ignores a parameter that it cannot use.
    """
    if nonlinearity == "leaky_relu":
        return _leaky_relu_gain(0.01 if param is None else param)
    if nonlinearity not in GAINS:
        raise ValueError(_unknown(nonlinearity))
    if param is not None:
        raise ValueError(
            f"nonlinearity {nonlinearity!r} takes no parameter, got {param!r}; "
            "a negative slope needs nonlinearity 'leaky_relu'"
        )
    return GAINS[nonlinearity]


def _leaky_relu_gain(negative_slope: float) -> float:
    # bool is an int to Python, and never a slope to its author.
    if isinstance(negative_slope, bool) or not isinstance(negative_slope, numbers.Real):
        raise TypeError(f"negative_slope must be a number, got {negative_slope!r}")
    if not math.isfinite(negative_slope):
        raise ValueError(f"negative_slope must be finite, got {negative_slope!r}")
    return math.sqrt(2 / (1 + negative_slope**2))


def _unknown(nonlinearity: object) -> str:
    nearest = difflib.get_close_matches(str(nonlinearity).lower(), _LEGAL, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
    return f"unknown nonlinearity {nonlinearity!r}{hint} Legal names: {', '.join(_LEGAL)}"
