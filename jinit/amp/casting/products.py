"""What a product is: whether it sums anything, and whether its user asked for a precision."""

import math
from typing import Any

import jax
from jax import lax
from jax.extend import core as jex

from jinit.tracing import PRODUCTS, aval_of

__all__ = ["asks_for_precision", "contracts", "inner"]

_OPTION = "jax_default_matmul_precision"


def contracts(product: jex.JaxprEqn) -> bool:
    """Returns whether an operation sums two products or more for an entry of its result.

    An outer product does not, ``jnp.einsum("i,j->ij", positions, frequencies)``, nor one over an
    axis of size 1: rounding its factors to half saves nothing, and costs their digits. Of what is
    not a product of ``jax.lax`` it is not known, and taken for granted.
    """
    name = product.primitive.name
    if name not in PRODUCTS:
        return True
    left, right = (aval_of(atom).shape for atom in product.invars[:2])
    if name == "conv_general_dilated":
        spec = product.params["dimension_numbers"].rhs_spec
        return math.prod(right[axis] for axis in spec[1:]) > 1  # inputs of a group, and space
    numbers = product.params.get("dimension_numbers")
    if numbers is None:
        numbers = product.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    (contracted, _), _ = numbers
    return math.prod(left[axis] for axis in contracted) > 1


def inner(product: jex.JaxprEqn) -> bool:
    """Returns whether a product has no axes but those that it sums and those of a batch.

    ``jnp.dot(x, x)`` of vectors, or ``jnp.einsum("nd,nd->n", x, y)``: each number is read once, so
    that nothing is gained in half, and a sum of squares overflows like any other.
    """
    if product.primitive.name != "dot_general":
        return False
    (contracted, _), (batch, _) = product.params["dimension_numbers"]
    return all(len(aval_of(atom).shape) == len(contracted) + len(batch) for atom in product.invars)


def asks_for_precision(product: jex.JaxprEqn) -> bool:
    """Returns whether a product was given another precision than the one in ``jax.config``."""
    asked = product.params.get("precision")
    if asked is None or asked == _default_precision():
        return False
    return asked != (lax.Precision.DEFAULT, lax.Precision.DEFAULT)


def _default_precision() -> Any:
    name = getattr(jax.config, _OPTION)  # in a context that of the context, unlike config.values
    if name is None:
        return None
    try:
        return (lax.Precision(name),) * 2
    except ValueError:
        return lax.DotAlgorithmPreset[name]
