"""Averages over a standard normal number."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["second_moment"]

REACH = 12  # standard deviations; the mass beyond is 4e-33
NODES = 16  # Gauss-Legendre nodes for every unit of length


@functools.lru_cache(maxsize=256)
def second_moment(function: Callable[[Any], Any]) -> float:
    r"""Integrates :math:`E f(z)^2`, :math:`z \sim N(0, 1)`.

    Each interval between integers is integrated by itself, so that the kinks of piecewise
    functions, which lie at integers as a rule (relu, relu6, hard_tanh, hard_swish), cost no
    accuracy: 16 digits there and for smooth functions, 4 for a kink elsewhere.

    Args:
        function: Takes an array of float64 and returns one of its shape, element by element.

    Returns:
        The average, in [0, inf].

    Raises:
        ValueError: If the function returns another shape.

    Example:
        >>> second_moment(jax.nn.relu)
        0.5
    """
    nodes, weights = _nodes()
    # Float64 whatever the caller's setting is, and no tracing where a model is being traced.
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        values = np.asarray(function(jnp.asarray(nodes)), np.float64)
    if values.shape != nodes.shape:
        raise ValueError(
            f"{function!r} must return one number for each it is given, "
            f"but returned shape {values.shape} for {nodes.shape}"
        )
    return float(weights @ values**2)


def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Returns points, and weights that include the normal density."""
    unit, weights = np.polynomial.legendre.leggauss(NODES)
    starts = np.arange(-REACH, REACH)[:, None]
    nodes = (starts + (unit + 1) / 2).ravel()
    density = np.exp(-(nodes**2) / 2) / np.sqrt(2 * np.pi)
    return nodes, np.tile(weights / 2, 2 * REACH) * density
