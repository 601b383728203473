r"""Torch's initializers, as rows.

Torch draws a kernel and its bias from :math:`U(-b, b)`, :math:`b = 1/\sqrt{\text{fan\_in}}`, and
the parameters of recurrent cells with the hidden size in place of the fan.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax import nnx
from flax.linen.experimental import layers_with_named_axes as named_axes

from jinit.defaults.tables.fans import (
    conv_fan_in,
    dense_general_fans,
    einsum_fans,
    linear_general_fans,
    nnx_einsum_fans,
)
from jinit.defaults.tables.layer_table import Derived, Row, rows
from jinit.initializers import kaiming_uniform, normal, uniform, xavier_uniform, zeros

__all__ = ["TORCH"]


def _bounded(fan: Callable[..., int], text: str) -> Derived:
    """Returns the default U(-b, b), b = 1 / sqrt(fan), of a fan that follows from the layer."""

    def derive(*args: Any, **kwargs: Any) -> uniform:
        bound = 1 / math.sqrt(fan(*args, **kwargs))
        return uniform(low=-bound, high=bound)

    return Derived(derive, f"uniform(1/sqrt({text}))")


def _like_linear(fan_in: Callable[..., int], kernel_init: Any = None) -> dict[str, Any]:
    bounded = _bounded(fan_in, "fan_in")
    return {"kernel_init": kernel_init or bounded, "bias_init": bounded}


def _first(fans: Callable[..., tuple[int, int]]) -> Callable[..., int]:
    return lambda *args, **kwargs: fans(*args, **kwargs)[0]


def _dense(layer: Any, inputs: Any) -> int:
    return inputs.shape[-1]


def _conv(layer: Any, inputs: Any) -> int:
    return conv_fan_in(layer.kernel_size, inputs.shape[-1], layer.feature_group_count)


def _conv_transpose(layer: Any, inputs: Any) -> int:
    # Torch's kernel is (in, out, *k), and it takes the second axis for the inputs.
    return conv_fan_in(layer.kernel_size, layer.features)


def _nnx_conv(arguments: Any) -> int:
    groups = arguments.feature_group_count
    return conv_fan_in(arguments.kernel_size, arguments.in_features, groups)


def _nnx_conv_transpose(arguments: Any) -> int:
    return conv_fan_in(arguments.kernel_size, arguments.out_features)


def _attention(
    layer: Any, inputs_q: Any, inputs_k: Any = None, inputs_v: Any = None, **_: Any
) -> xavier_uniform:
    # Flax takes queries for the keys, and keys for the values, where these are not given.
    keys = inputs_q if inputs_k is None else inputs_k
    values = keys if inputs_v is None else inputs_v
    sizes = {inputs.shape[-1] for inputs in (inputs_q, keys, values)}
    return _projections(sizes, layer.qkv_features or inputs_q.shape[-1])


def _nnx_attention(arguments: Any) -> xavier_uniform:
    features = arguments.in_features
    return _projections(
        {features, arguments.in_kv_features or features}, arguments.qkv_features or features
    )


def _projections(sizes: set[int], outputs: int) -> xavier_uniform:
    # Of inputs of one size torch projects queries, keys and values with one matrix.
    return xavier_uniform(fans=(min(sizes), 3 * outputs)) if len(sizes) == 1 else xavier_uniform()


# The fan_in of a kernel (*spatial, in, out) follows from its shape: U(-b, b) with that b.
KERNEL = kaiming_uniform(negative_slope=math.sqrt(5))
LINEAR = _like_linear(_dense, KERNEL)
EMBEDDING = {"embedding_init": normal()}
SLOPE = {"negative_slope_init": 0.25}
PROJECTIONS = "xavier_uniform(query, key and value as one)"
ATTENTION = {"out_kernel_init": KERNEL, "bias_init": zeros()}
# Of a cell's kernel (in, hidden), and of its bias, the hidden size is the last axis.
HIDDEN = kaiming_uniform(negative_slope=math.sqrt(5), mode="fan_out")
KERNELS = {"kernel_init": HIDDEN, "recurrent_kernel_init": HIDDEN}
CELL = {
    **KERNELS,
    "bias_init": kaiming_uniform(negative_slope=math.sqrt(5), mode="fan_out", in_axis=()),
}
BY_HIDDEN = _bounded(lambda arguments: arguments.hidden_features, "hidden")
FUSED_CELL = dict.fromkeys(CELL, BY_HIDDEN)

TORCH: tuple[Row, ...] = rows(
    {
        nn.Dense: LINEAR,
        nn.DenseGeneral: _like_linear(_first(dense_general_fans)),
        nn.Einsum: _like_linear(_first(einsum_fans)),
        nn.Conv: _like_linear(_conv, KERNEL),
        nn.ConvLocal: _like_linear(_conv),
        nn.ConvTranspose: _like_linear(_conv_transpose),
        nn.Embed: EMBEDDING,
        nn.MultiHeadDotProductAttention: {
            "kernel_init": Derived(_attention, PROJECTIONS),
            **ATTENTION,
        },
        nn.LSTMCell: CELL,
        nn.OptimizedLSTMCell: CELL,
        nn.GRUCell: CELL,
        nn.MGUCell: KERNELS,
        nn.SimpleCell: CELL,
        nn.PReLU: SLOPE,
        named_axes.Dense: LINEAR,
        named_axes.Embed: EMBEDDING,
        nnx.Linear: _like_linear(lambda arguments: arguments.in_features, KERNEL),
        nnx.LinearGeneral: _like_linear(_first(linear_general_fans)),
        nnx.Einsum: _like_linear(_first(nnx_einsum_fans)),
        nnx.Conv: _like_linear(_nnx_conv, KERNEL),
        nnx.ConvTranspose: _like_linear(_nnx_conv_transpose),
        nnx.Embed: EMBEDDING,
        nnx.MultiHeadAttention: {"kernel_init": Derived(_nnx_attention, PROJECTIONS), **ATTENTION},
        nnx.LSTMCell: CELL,
        nnx.OptimizedLSTMCell: FUSED_CELL,
        nnx.GRUCell: FUSED_CELL,
        nnx.SimpleCell: CELL,
        nnx.PReLU: SLOPE,
    }
)
