"""Bypassing a parameter that is zero: a zero-initialized head or gate.

Nothing flows backward through a weight of zeros, so every layer before it would have no gradient
to be measured. A probe keeps the output as it is, and lets the gradient through random numbers in
the weight's place, scaled to an output of RMS 1.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jinit._arithmetic import inverse_rms, is_float, multiply, rms
from jinit.empirical.measuring.meshes import sharded_as
from jinit.tracing import EquationView

__all__ = ["bind_bypassed"]


def bind_bypassed(view: EquationView, values: Sequence[Any], parameter: int) -> list[Any]:
    """Applies a product whose weight may be zero, with the gradient of a probe if it is.

    Args:
        view: The product.
        values: Its operands.
        parameter: Which operand is the weight.

    Returns:
        The results, whose values and whose gradients for the weight are the product's own, and
        whose gradient for the other operands passes through the probe where the weight is zero.
    """
    weight = values[parameter]
    is_zero = jnp.all(weight == 0)
    drawn = _draw(view.path, weight) if view.equation.primitive.name != "mul" else weight + 1
    probe = lax.stop_gradient(jnp.where(is_zero, drawn.astype(weight.dtype), weight))
    held = [lax.stop_gradient(v) if is_float(v) else v for v in values]
    held[parameter] = weight
    (output,) = view.bind(held)
    (through,) = view.bind([probe if i == parameter else v for i, v in enumerate(values)])
    size = jnp.where(is_zero, inverse_rms(rms(lax.stop_gradient(through))), 1.0)
    through = multiply(through, size)
    return [output + (through - lax.stop_gradient(through))]


def _draw(path: Sequence[int], weight: jax.Array) -> jax.Array:
    """Draws the same in 64-bit mode, which takes larger seeds and has another default dtype."""
    seed = sum((index + 7) * 1009**depth for depth, index in enumerate(path)) % 2**32
    drawn = jax.random.normal(jax.random.key(seed), weight.shape, jnp.float32)
    return sharded_as(drawn, weight)
