"""The table of each system, and the rows that users add to them."""

import functools
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import flax.linen as nn
from flax import nnx
from flax.linen.experimental import layers_with_named_axes as named_axes

from jinit._kinds import is_number
from jinit._known import known_arguments
from jinit.defaults.tables.keras import KERAS
from jinit.defaults.tables.layer_table import Derived, LayerTable, Row, declared
from jinit.defaults.tables.torch import TORCH
from jinit.defaults.undo import Undo
from jinit.initializers.base import Initializer
from jinit.initializers.compose import draws

__all__ = ["System", "register", "table_of"]

System = Literal["keras", "torch"]

INITIALIZERS: Mapping[System, tuple[Row, ...]] = MappingProxyType({"keras": KERAS, "torch": TORCH})

# RMSNorm, WeightNorm and SpectralNorm keep their own epsilons.
EPSILON = (
    *(nn.BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, named_axes.LayerNorm),
    *(nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm, nnx.InstanceNorm),
)
MOMENTUM = (nn.BatchNorm, nnx.BatchNorm)

_lock = threading.Lock()
_registered: tuple[tuple[System, Row], ...] = ()


def table_of(
    system: System,
    parameter_initialization: bool,
    batchnorm_momentum: float | None,
    norm_epsilon: float | None,
) -> LayerTable:
    """Returns a system's table, one and the same as long as nothing else is registered."""
    at_apply = (("momentum", batchnorm_momentum), ("epsilon", norm_epsilon))
    return _table_of(system, parameter_initialization, at_apply, _registered)


@functools.lru_cache
def _table_of(
    system: System,
    parameter_initialization: bool,
    at_apply: tuple[tuple[str, float | None], ...],
    registered: tuple[tuple[System, Row], ...],
) -> LayerTable:
    wanted = {field for field, value in at_apply if value is not None}
    rows = [
        *INITIALIZERS[system],
        *(
            Row(norm, field, value)
            for (field, value), norms in zip(at_apply, (MOMENTUM, EPSILON), strict=True)
            for norm in norms
        ),
        *(row for owner, row in registered if owner == system),
    ]
    # The last row for a field counts: what was registered goes before what is known here.
    last = {(row.layer, row.field, row.role): row for row in rows}
    chosen = (
        row
        for row in last.values()
        if (row.field in wanted if row.at_apply else parameter_initialization)
    )
    return LayerTable(system, tuple(chosen))


@known_arguments
def register(layer: type, fields: Mapping[str, object], system: System = "keras") -> Undo:
    """Adds defaults for a layer to the table of a system, or replaces those that it has.

    They count for ``keras_defaults`` and its like that are called afterwards, in the whole
    process. The fields ``epsilon`` and ``momentum`` are left alone where the argument for them is
    None, all others where ``parameter_initialization`` is False.

    Args:
        layer: A class of Linen or NNX modules, of Flax or one's own; its subclasses follow it.
        fields: Values by the names of fields of a Linen class, or of arguments of an NNX class's
            constructor, each with a default there. A value is an initializer, a number, or a
            ``Derived`` that follows from the layer at hand.
        system: Whose table it is, ``"keras"`` or ``"torch"``.

    Returns:
        The undo: call it, or use it as a context manager.

    Raises:
        TypeError: If ``layer`` is no class of Linen or NNX modules, or a value cannot stand in
            place of the default: an initializer that cannot be called, or a factory that was not.
        ValueError: If the class has no such field with a default, or there is no such system.

    Example:
        >>> import flax.linen as nn, jax
        >>> from jinit import initializers, keras_defaults
        >>> class Scale(nn.Module):
        ...     scale_init: nn.initializers.Initializer = nn.initializers.ones
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         return x * self.param("scale", self.scale_init, ())
        >>> with register(Scale, {"scale_init": initializers.constant(0.5)}), keras_defaults():
        ...     print(Scale().init_with_output(jax.random.key(0), 1.0)[0])
        0.5
    """
    global _registered
    _check(layer, fields, system)
    added: tuple[tuple[System, Row], ...] = tuple(
        (system, Row(layer, field, value)) for field, value in fields.items()
    )
    with _lock:
        _registered = (*_registered, *added)
    return Undo(functools.partial(_unregister, added))


def _unregister(added: tuple[tuple[System, Row], ...]) -> None:
    global _registered
    with _lock:
        _registered = tuple(entry for entry in _registered if entry not in added)


def _check(layer: type, fields: Mapping[str, object], system: str) -> None:
    if not (isinstance(layer, type) and issubclass(layer, nn.Module | nnx.Module)):
        raise TypeError(f"register takes a class of flax.linen or flax.nnx modules, got {layer!r}")
    if system not in get_args(System):
        raise ValueError(f"unknown system {system!r}; legal: {', '.join(get_args(System))}")
    if not isinstance(fields, Mapping):
        raise TypeError(
            "register takes fields as a dict by name, such as {'kernel_init': zeros()}, "
            f"got {fields!r}"
        )
    missing = [field for field in fields if not declared(layer, field)]
    if missing:
        raise ValueError(
            f"{layer.__name__} has no field {', '.join(map(repr, missing))} with a default; "
            "register the class that declares it"
        )
    for field, value in fields.items():
        wrong = _misfit(Row(layer, field, value))
        if wrong:
            raise TypeError(f"{layer.__name__}.{field} {wrong}, got {value!r}")


def _misfit(row: Row) -> str | None:
    """Returns what a value should be that cannot stand in place of the default."""
    value, default = row.value, row.library_default
    if isinstance(value, Derived):
        return None
    if is_number(default):
        drawn = row.field.endswith("_init") and callable(value)
        return None if is_number(value) or drawn else "takes a number"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "takes a bool"
    if isinstance(value, Initializer) and not row.field.endswith("_init"):
        return "takes no initializer"
    if not callable(default):
        return None
    if not row.field.endswith("_init"):
        return None if callable(value) else "takes a function"
    drawn = callable(value) and not isinstance(value, type) and draws(value)
    return None if drawn else "takes an initializer, a function of key, shape and dtype"
