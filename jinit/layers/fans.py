"""The fans of a product, and which axis of its output holds the units."""

import math
from typing import Any, NamedTuple

from jax.extend import core as jex

from jinit.tracing import aval_of

__all__ = ["ProductShape", "shape_of_product"]


class ProductShape(NamedTuple):
    """What an equation's shapes say of the layer.

    Attributes:
        fan_in: The number of inputs that one output is a sum over.
        fan_out: The number of outputs that one input feeds.
        units: The axis of the output along which the units lie.
    """

    fan_in: int
    fan_out: int
    units: int


def shape_of_product(equation: jex.JaxprEqn, parameter: int) -> ProductShape:
    """Reads fans and unit axis of an equation whose operand number ``parameter`` is the weight."""
    name, weight = equation.primitive.name, aval_of(equation.invars[parameter]).shape
    if name == "conv_general_dilated" and parameter == 1:
        return _of_convolution(equation.params, weight)
    if name == "dot_general":
        return _of_dot(equation.params, weight, parameter)
    rank = len(aval_of(equation.outvars[0]).shape)
    if name.startswith("ragged_dot"):
        return ProductShape(weight[-2], weight[-1], rank - 1)
    return ProductShape(1, weight[-1] if weight else 1, max(rank - 1, 0))


def _of_convolution(params: Any, weight: tuple[int, ...]) -> ProductShape:
    numbers = params["dimension_numbers"]
    out, into, *window = numbers.rhs_spec
    field = math.prod(weight[axis] for axis in window)
    fan_out = field * weight[out] // params["feature_group_count"]
    return ProductShape(field * weight[into], fan_out, numbers.out_spec[1])


def _of_dot(params: Any, weight: tuple[int, ...], parameter: int) -> ProductShape:
    contracted, batched = (pair[parameter] for pair in params["dimension_numbers"])
    taken = {*contracted, *batched}
    free = [size for axis, size in enumerate(weight) if axis not in taken]
    fan_in = math.prod(weight[axis] for axis in contracted)
    last = len(batched) + len(free) - 1 if parameter == 0 else -1
    return ProductShape(fan_in, math.prod(free), last)
