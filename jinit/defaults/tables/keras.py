"""Keras's initializers, as rows."""

from typing import Any

import flax.linen as nn
from flax import nnx
from flax.linen.experimental import layers_with_named_axes as named_axes

from jinit.defaults.tables.fans import (
    as_tuple,
    dense_general_fans,
    einsum_fans,
    linear_general_fans,
    nnx_einsum_fans,
)
from jinit.defaults.tables.gates import blocks, joint, per_gate
from jinit.defaults.tables.layer_table import Derived, Role, Row, rows
from jinit.initializers import ones, orthogonal, uniform, xavier_uniform, zeros

__all__ = ["KERAS"]


def _conv_local(layer: nn.ConvLocal, inputs: Any) -> xavier_uniform:
    # Kernel (*positions, window * in, out): every output position has a kernel of its own.
    return xavier_uniform(batch_axis=tuple(range(len(as_tuple(layer.kernel_size)))))


def _by_equation(fans: Any) -> Derived:
    def derive(*args: Any, **kwargs: Any) -> xavier_uniform:
        return xavier_uniform(fans=fans(*args, **kwargs))

    return Derived(derive, "xavier_uniform(fans=equation)")


GLOROT = {"kernel_init": xavier_uniform()}
EMBEDDING = {"embedding_init": uniform(low=-0.05, high=0.05)}
SLOPE = {"negative_slope_init": 0.0}
RECURRENT = {**GLOROT, "recurrent_kernel_init": orthogonal()}
# The bias of the forget gate is 1. ConvLSTMCell adds its 1 itself, and MGUCell's is 1 already.
BIASES = zeros(), ones(), zeros(), zeros()


def _gates(number: int) -> dict[str, Any]:
    """Returns the defaults of a cell whose gates have kernels of their own."""
    return {field: joint(init, number) for field, init in RECURRENT.items()}


LSTM = {**_gates(4), "bias_init": per_gate(*BIASES)}

# Where Flax's default is Keras's already, as with biases of zero, there is no row.
KERAS: tuple[Row, ...] = (
    *rows(
        {
            nn.Dense: GLOROT,
            nn.DenseGeneral: {"kernel_init": _by_equation(dense_general_fans)},
            nn.Einsum: {"kernel_init": _by_equation(einsum_fans)},
            nn.Conv: GLOROT,
        }
    ),
    Row(nn.Conv, "kernel_init", orthogonal(), Role(nn.ConvLSTMCell, "hh")),
    *rows(
        {
            nn.ConvLocal: {"kernel_init": Derived(_conv_local, "xavier_uniform(per position)")},
            nn.ConvTranspose: GLOROT,
            nn.Embed: EMBEDDING,
            nn.LSTMCell: LSTM,
            nn.OptimizedLSTMCell: LSTM,
            nn.GRUCell: _gates(3),
            nn.MGUCell: _gates(2),
            nn.SimpleCell: RECURRENT,
            nn.PReLU: SLOPE,
            named_axes.Dense: GLOROT,
            named_axes.Embed: EMBEDDING,
            nnx.Linear: GLOROT,
            nnx.LinearGeneral: {"kernel_init": _by_equation(linear_general_fans)},
            nnx.Einsum: {"kernel_init": _by_equation(nnx_einsum_fans)},
            nnx.MultiHeadAttention: GLOROT,
            nnx.Conv: GLOROT,
            nnx.ConvTranspose: GLOROT,
            nnx.Embed: EMBEDDING,
            nnx.LSTMCell: LSTM,
            nnx.OptimizedLSTMCell: {**RECURRENT, "bias_init": blocks(*BIASES)},
            nnx.GRUCell: RECURRENT,
            nnx.SimpleCell: RECURRENT,
            nnx.PReLU: SLOPE,
        }
    ),
)
