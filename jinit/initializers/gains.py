"""Gains: the factor by which an initializer makes up for what a nonlinearity takes away."""

import difflib
import math
import numbers
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jinit._known import known_arguments
from jinit.initializers.quadrature import second_moment

__all__ = ["GAINS", "PARAMETRIC", "Nonlinearity", "calculate_gain"]

Nonlinearity = str | Callable[[Any], Any]
"""A name that ``calculate_gain`` knows, or a function of arrays, element by element."""

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
        # torch has none for these; 1 / sqrt(E f(z)^2), gelu with the exact distribution function
        "gelu": 1.5335304411955353,
        "silu": 1.6765324703310909,
        "softplus": 1.0418668355353016,
    }
)
"""The gain of each nonlinearity that has no parameter."""


class Parametric(NamedTuple):
    """A nonlinearity with a parameter.

    Attributes:
        name: What the parameter is called.
        default: Its value when none is given.
        gain: The gain as a function of it.
    """

    name: str
    default: float
    gain: Callable[[float], float]


def _leaky_relu_gain(negative_slope: float) -> float:
    return math.sqrt(2 / (1 + negative_slope**2))


def _elu_gain(alpha: float) -> float:
    # E (e^z - 1)^2 over z < 0, in closed form
    tail = math.exp(2) * math.erfc(math.sqrt(2)) / 2 - math.exp(0.5) * math.erfc(math.sqrt(0.5))
    return 1 / math.sqrt(0.5 + alpha**2 * (tail + 0.5))


PARAMETRIC: Mapping[str, Parametric] = MappingProxyType(
    {
        "leaky_relu": Parametric("negative_slope", 0.01, _leaky_relu_gain),
        "elu": Parametric("alpha", 1.0, _elu_gain),
    }
)
"""The nonlinearities that have one."""

_LEGAL = (*GAINS, *PARAMETRIC)


@known_arguments
def calculate_gain(nonlinearity: Nonlinearity, param: float | None = None) -> float:
    r"""Returns the recommended gain of a nonlinearity.

    1 for the linear maps and sigmoid, 5/3 for tanh, :math:`\sqrt 2` for relu, 3/4 for selu, and
    :math:`\sqrt{2 / (1 + \text{negative\_slope}^2)}` for leaky_relu: torch's values. For gelu,
    silu, elu and softplus, and for any function, it is :math:`1 / \sqrt{E f(z)^2}` with a
    standard normal z: what keeps the mean square of a layer's sums at 1. By that measure linear,
    relu and leaky_relu have the gains above, but sigmoid 1.846, tanh 1.593 and selu 1; pass
    ``jax.nn.sigmoid``, ``jnp.tanh`` and ``jax.nn.selu`` themselves for these.

    Args:
        nonlinearity: ``linear``, ``conv1d`` to ``conv3d``, ``conv_transpose1d`` to
            ``conv_transpose3d``, ``sigmoid``, ``tanh``, ``relu``, ``leaky_relu``, ``selu``,
            ``gelu``, ``silu``, ``elu`` or ``softplus``; or a function, which is measured once, in
            float64, to 16 digits where it is smooth between integers.
        param: The negative slope of leaky_relu, 0.01 when it is None, or the alpha of elu, 1
            when it is None. No other takes one.

    Returns:
        The gain, a positive float.

    Raises:
        ValueError: If the name is unknown, a parameter is given to a nonlinearity without one, or
            a function's mean square is 0 or not finite.
        TypeError: If the parameter is not a number.

    Example:
        >>> calculate_gain("tanh"), round(calculate_gain("leaky_relu", 0.2), 4)
        (1.6666666666666667, 1.3868)
        >>> import jax.numpy as jnp
        >>> round(calculate_gain(jnp.tanh), 4)
        1.5925

    Source:
        ``torch.nn.init.calculate_gain``, which ignores a parameter that it cannot use. The measure
        is that of He et al., Delving deep into rectifiers, 2015.
    """
    if isinstance(nonlinearity, str) and nonlinearity in PARAMETRIC:
        return _parametric_gain(PARAMETRIC[nonlinearity], param)
    if not callable(nonlinearity) and not (isinstance(nonlinearity, str) and nonlinearity in GAINS):
        raise ValueError(_unknown(nonlinearity))
    if param is not None:
        takers = ", ".join(f"{name} (its {p.name})" for name, p in PARAMETRIC.items())
        raise ValueError(
            f"nonlinearity {nonlinearity!r} takes no parameter, got {param!r}; "
            f"those that take one: {takers}"
        )
    return _measured_gain(nonlinearity) if callable(nonlinearity) else GAINS[nonlinearity]


def _parametric_gain(nonlinearity: Parametric, param: float | None) -> float:
    if param is None:
        param = nonlinearity.default
    # bool is an int to Python, and never a slope to its author; a JAX scalar is no Real.
    if isinstance(param, bool) or not (isinstance(param, numbers.Real) or _is_scalar(param)):
        raise TypeError(f"{nonlinearity.name} must be a number, got {param!r}")
    if not math.isfinite(param):
        raise ValueError(f"{nonlinearity.name} must be finite, got {param!r}")
    return nonlinearity.gain(float(param))


def _is_scalar(value: object) -> bool:
    return getattr(value, "shape", None) == () and hasattr(value, "__float__")


def _measured_gain(function: Callable[[Any], Any]) -> float:
    square = second_moment(function)
    if not 0 < square < math.inf:
        raise ValueError(
            f"{function!r} has no gain: its mean square over a standard normal is {square}"
        )
    return 1 / math.sqrt(square)


def _unknown(nonlinearity: object) -> str:
    nearest = difflib.get_close_matches(str(nonlinearity).lower(), _LEGAL, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
    return (
        f"unknown nonlinearity {nonlinearity!r}{hint} Legal names: {', '.join(_LEGAL)}; "
        "or pass a function"
    )
