"""Which field of which layer gets which value: the defaults as data."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import flax.linen as nn

from jinit._tables import format_table

__all__ = ["AT_APPLY", "Derived", "LayerTable", "Role", "Row", "declared", "label", "rows"]

AT_APPLY = ("epsilon", "momentum")
"""The fields that count when a layer is applied, and not only when it is initialized."""


@dataclass(frozen=True)
class Derived:
    """A value that follows from the layer and what it is called on, made anew for every call.

    Attributes:
        derive: Returns the value. For a Linen class it takes the layer and the arguments of its
            ``__call__``; for an NNX class one object that has the arguments of the constructor
            as attributes.
        text: What a printed table shows.

    Example:
        >>> Derived(lambda layer: layer.features, "features")
        features
    """

    derive: Callable[..., object]
    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Role:
    """The part that a layer plays in another one.

    Attributes:
        parent: The class that contains the layer.
        name: What the layer is called there.
    """

    parent: type
    name: str

    def played_by(self, layer: nn.Module) -> bool:
        """Returns whether a layer plays it."""
        return layer.name == self.name and isinstance(layer.parent, self.parent)

    def __str__(self) -> str:
        return f" as {label(self.parent)}.{self.name}"


@dataclass(frozen=True, eq=False)
class Row:
    """One default.

    Attributes:
        layer: The class that declares the field; its subclasses follow it.
        field: The name of the field, for an NNX class that of the constructor's argument.
        value: What replaces the library's default, or a ``Derived``.
        role: Where it is for a part of another Linen layer alone.
    """

    layer: type
    field: str
    value: object
    role: Role | None = None

    @functools.cached_property
    def library_default(self) -> object:
        """The object that a layer carries when its user passed nothing."""
        if issubclass(self.layer, nn.Module):
            return self.layer.__dataclass_fields__[self.field].default
        return inspect.signature(self.layer.__init__).parameters[self.field].default

    @property
    def at_apply(self) -> bool:
        """Whether it counts when the layer is applied."""
        return self.field in AT_APPLY


@dataclass(frozen=True, eq=False)
class LayerTable:
    """Rows of defaults. Tables are told apart by identity: they key the caches of jit.

    Attributes:
        system: Whose defaults they are, ``"keras"`` or ``"torch"``.
        rows: The rows, at most one for each layer, field and role.

    Example:
        >>> print(LayerTable("mine", (Row(nn.LayerNorm, "epsilon", 1e-3),)))
          layer             field     value
         ───────────────────────────────────
          linen.LayerNorm   epsilon   0.001
    """

    system: str
    rows: tuple[Row, ...]

    @functools.cached_property
    def layers(self) -> tuple[type, ...]:
        """The classes that have rows, each once."""
        return tuple(dict.fromkeys(row.layer for row in self.rows))

    def rows_of(self, layer: type) -> tuple[Row, ...]:
        """Returns the rows of a class and its bases, those that go before others first."""
        return _rows_of(self, layer)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        cells = (
            (f"{label(row.layer)}{row.role or ''}", row.field, repr(row.value)) for row in self
        )
        return format_table(["layer", "field", "value"], cells)


@functools.lru_cache(maxsize=1024)
def _rows_of(table: LayerTable, layer: type) -> tuple[Row, ...]:
    rows = [row for base in layer.__mro__ for row in table if row.layer is base]
    return tuple(sorted(rows, key=lambda row: row.role is None))


def label(layer: type) -> str:
    """Returns the name of a class, with the part of Flax it comes from."""
    *package, module = layer.__module__.split(".")
    if package[:1] != ["flax"]:
        return layer.__name__
    home = module if "experimental" in package else package[1]
    return f"{home}.{layer.__name__}"


def declared(layer: type, field: str) -> bool:
    """Returns whether a class has a field, or its constructor an argument, with a default."""
    if issubclass(layer, nn.Module):
        found = layer.__dataclass_fields__.get(field)
        return found is not None and found.default is not dataclasses.MISSING
    parameter = inspect.signature(layer.__init__).parameters.get(field)
    return parameter is not None and parameter.default is not parameter.empty


def rows(defaults: Mapping[type, Mapping[str, object]]) -> tuple[Row, ...]:
    """Returns the rows of values by layer and field."""
    return tuple(
        Row(layer, field, value)
        for layer, fields in defaults.items()
        for field, value in fields.items()
    )
