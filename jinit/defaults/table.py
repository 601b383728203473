"""Which field of which layer gets which value: the defaults as data."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from jinit._tables import format_table
from jinit.initializers import uniform, xavier_uniform
from jinit.initializers.variance_scaling import VarianceScaling

__all__ = ["Derived", "LayerTable", "Row", "keras_table"]


@dataclass(frozen=True)
class Derived:
    """A value that follows from the layer and what it is called on.

    Attributes:
        derive: Takes the layer and the arguments of its ``__call__``, returns the value.
        text: What a printed table shows.
    """

    derive: Callable[..., Any]
    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Row:
    """One default.

    Attributes:
        layer: The class of the library that declares the field; its subclasses follow it.
        field: The name of the field.
        value: What replaces the library's default, or a ``Derived``.
    """

    layer: type
    field: str
    value: Any

    @property
    def library_default(self) -> Any:
        """The object that a layer carries when its user passed nothing."""
        return self.layer.__dataclass_fields__[self.field].default


@dataclass(frozen=True, eq=False)
class LayerTable:
    """Rows of defaults. Tables are told apart by identity: they key the caches of jit.

    Attributes:
        rows: The rows, at most one for each layer and field.

    Example:
        >>> print(keras_table(False, None, 1e-3))
          layer          field     value
         ────────────────────────────────
          BatchNorm      epsilon   0.001
          LayerNorm      epsilon   0.001
          GroupNorm      epsilon   0.001
          InstanceNorm   epsilon   0.001
    """

    rows: tuple[Row, ...]

    def rows_of(self, layer: type) -> tuple[Row, ...]:
        """Returns the rows that concern a class, for each field that of its nearest base."""
        return _rows_of(self, layer)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        cells = ((row.layer.__name__, row.field, repr(row.value)) for row in self)
        return format_table(["layer", "field", "value"], cells)


@functools.lru_cache(maxsize=1024)
def _rows_of(table: LayerTable, layer: type) -> tuple[Row, ...]:
    nearest: dict[str, Row] = {}
    for base in layer.__mro__:
        for row in table:
            if row.layer is base:
                nearest.setdefault(row.field, row)
    return tuple(nearest.values())


def _dense_general(layer: nn.DenseGeneral, inputs: Any) -> VarianceScaling:
    # Keras takes the fans from the equation: what is summed over is the input, and all else is
    # output, batch axes too. The layer draws its kernel flat, (batch * in, out).
    fan_in = math.prod(inputs.shape[axis] for axis in _as_tuple(layer.axis))
    batch = math.prod(inputs.shape[axis] for axis in _as_tuple(layer.batch_dims))
    return xavier_uniform(fans=(fan_in, batch * math.prod(_as_tuple(layer.features))))


def _conv_local(layer: nn.ConvLocal, inputs: Any) -> VarianceScaling:
    # Kernel (*positions, window * in, out): every output position has a kernel of its own.
    return xavier_uniform(batch_axis=tuple(range(len(_as_tuple(layer.kernel_size)))))


def _as_tuple(value: int | Iterable[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,)


# Where Flax's default is Keras's already, as with biases of zero, there is no row.
_KERAS_INITIALIZERS: Mapping[tuple[type, str], Any] = {
    (nn.Dense, "kernel_init"): xavier_uniform(),
    (nn.DenseGeneral, "kernel_init"): Derived(_dense_general, "xavier_uniform(fans=equation)"),
    (nn.Conv, "kernel_init"): xavier_uniform(),
    (nn.ConvLocal, "kernel_init"): Derived(_conv_local, "xavier_uniform(batch_axis=positions)"),
    (nn.ConvTranspose, "kernel_init"): xavier_uniform(),
    (nn.Embed, "embedding_init"): uniform(-0.05, 0.05),
}

_NORMS = (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm)


@functools.cache
def keras_table(
    parameter_initialization: bool, batchnorm_momentum: float | None, norm_epsilon: float | None
) -> LayerTable:
    """Returns the table of Keras's defaults, one and the same for the same arguments."""
    rows = []
    if parameter_initialization:
        rows += [Row(*target, value) for target, value in _KERAS_INITIALIZERS.items()]
    if batchnorm_momentum is not None:
        rows.append(Row(nn.BatchNorm, "momentum", batchnorm_momentum))
    if norm_epsilon is not None:
        rows += [Row(norm, "epsilon", norm_epsilon) for norm in _NORMS]
    return LayerTable(tuple(rows))
