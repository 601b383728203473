"""Fans that a kernel's shape does not tell: those of an equation, and of a layer's bias."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn

__all__ = [
    "as_tuple",
    "conv_fan_in",
    "dense_general_fans",
    "einsum_fans",
    "equation_fans",
    "flat_shape",
    "linear_general_fans",
    "nnx_einsum_fans",
]

Fans = tuple[int, int]


def as_tuple(value: int | Iterable[int]) -> tuple[int, ...]:
    """Returns one number or several as a tuple."""
    return tuple(value) if isinstance(value, Iterable) else (value,)


def equation_fans(equation: str, shape: Sequence[int]) -> Fans:
    """Returns the fans of the second operand: what is summed over, and all the rest of it.

    Example:
        >>> equation_fans("abc,cde->abde", (5, 6, 7))
        (5, 42)
    """
    operands, _, output = equation.replace(" ", "").partition("->")
    front, _, back = operands.partition(",")[2].partition("...")
    letters = front.ljust(len(shape) - len(back), ".") + back
    summed = [letter not in f"{output}." for letter in letters]
    return (
        math.prod(n for n, inside in zip(shape, summed, strict=True) if inside),
        math.prod(n for n, inside in zip(shape, summed, strict=True) if not inside),
    )


def einsum_fans(layer: nn.Einsum, inputs: Any, einsum_str: str | None = None) -> Fans:
    """Returns the fans of an Einsum's kernel."""
    return equation_fans(einsum_str or layer.einsum_str or "", layer.shape)


def nnx_einsum_fans(arguments: Any) -> Fans:
    """Returns the fans of the kernel of NNX's Einsum."""
    return equation_fans(arguments.einsum_str, arguments.kernel_shape)


def dense_general_fans(layer: nn.DenseGeneral, inputs: Any) -> Fans:
    """Returns the fans of a DenseGeneral's kernel; batch axes are outputs, as in Keras."""
    # The layer itself draws its kernel flat, (batch * in, out), and would count them as inputs.
    fan_in = math.prod(inputs.shape[axis] for axis in as_tuple(layer.axis))
    batch = math.prod(inputs.shape[axis] for axis in as_tuple(layer.batch_dims))
    return fan_in, batch * math.prod(as_tuple(layer.features))


def linear_general_fans(arguments: Any) -> Fans:
    """Returns the fans of the kernel of NNX's LinearGeneral; batch axes are outputs."""
    fan_in = math.prod(as_tuple(arguments.in_features))
    batch = math.prod(arguments.batch_axis.values())
    return fan_in, batch * math.prod(as_tuple(arguments.out_features))


def conv_fan_in(kernel_size: int | Sequence[int], features: int, groups: int = 1) -> int:
    """Returns how many numbers an output of a convolution sums."""
    return math.prod(as_tuple(kernel_size)) * (features // groups)


def flat_shape(name: str, shape: tuple[int, ...], features: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the shape in which a layer of several axes draws: a matrix, or for a bias a vector.

    Example:
        >>> flat_shape("kernel", (5, 2, 3), (2, 3))
        (5, 6)
    """
    if name != "kernel":
        return (math.prod(shape),)
    outputs = len(as_tuple(features))
    return math.prod(shape[:-outputs]), math.prod(shape[-outputs:])
