"""What is read of a model: how its parameters are drawn, and its norm layers' numbers."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
from flax import nnx
from flax.linen.experimental import layers_with_named_axes as named_axes

from jinit._kinds import is_number
from jinit.defaults.active import active_table
from jinit.defaults.provenance.explain import Fans, explain, pinned
from jinit.defaults.tables.layer_table import AT_APPLY

__all__ = ["NNX_LAYERS", "RETRACE", "UNKNOWN", "Drawn", "Path", "Pending", "Reading"]

Path = tuple[str, ...]

Drawn = tuple[str, Fans | None, str]
"""The distribution of a parameter, its fans, and who decided."""

RETRACE = jax.make_user_context(None)
"""What jit has traced already, it would not run again: called with a new object, it does."""


def _classes(*namespaces: Any) -> Iterator[type]:
    for namespace in namespaces:
        for value in vars(namespace).values():
            if isinstance(value, type) and issubclass(value, nn.Module | nnx.Module):
                yield value


UNKNOWN = "-"
"""What is not known of a parameter, or of who chose a number."""


def _own_defaults(layer: type) -> Mapping[str, Any]:
    """Returns the defaults of a class's fields, or of its constructor's arguments."""
    if issubclass(layer, nn.Module):
        return {name: f.default for name, f in getattr(layer, "__dataclass_fields__", {}).items()}
    return {name: p.default for name, p in inspect.signature(layer.__init__).parameters.items()}


NNX_LAYERS = tuple(
    layer
    for layer in _classes(nnx)
    if any(name.endswith("_init") or name in AT_APPLY for name in _own_defaults(layer))
)


def _role(name: str) -> str:
    """What a parameter is for: ``kernel`` for ``kernel_init`` and ``recurrent_kernel_init``."""
    return name.rpartition("/")[2].removesuffix("_init").rpartition("_")[2]


# Layers pass their defaults on to the layers they are made of, under other names of one role. The
# role counts: what is the default for one layer's bias was chosen where it draws a kernel.
_LIBRARY_INITIALIZERS = {
    (id(default), _role(name))
    for layer in _classes(nn, named_axes, nnx)
    for name, default in _own_defaults(layer).items()
    if name.endswith("_init") and default is not None
}


@dataclass(frozen=True)
class Pending:
    """An initializer that is about to draw.

    Attributes:
        init: What draws.
        decided_by: Who chose it.
    """

    init: Any
    decided_by: str

    def explain(self, shape: tuple[int, ...]) -> Drawn:
        """Returns the distribution, the fans, and who chose them."""
        return *explain(self.init, shape), self.decided_by


@dataclass
class Reading:
    """What was read so far.

    Attributes:
        drawn: The distribution of a parameter, its fans, and who decided, by its path.
        norms: The numbers of a norm layer with who decided, by its path and their names.
        notes: What cannot be told.
    """

    drawn: dict[Path, Drawn] = field(default_factory=dict)
    norms: dict[Path, dict[str, tuple[float, str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _given: list[tuple[Any, str]] = field(default_factory=list)

    def give(self, values: Mapping[str, Any]) -> None:
        """Takes note of values that the active table gave to a layer."""
        table = active_table()
        if table is not None:
            self._given += ((value, table.system) for value in values.values())

    def pending(self, name: str, init: Any) -> Pending:
        """Returns an initializer that is about to draw a parameter, with who chose it."""
        is_default = (id(init), _role(name)) in _LIBRARY_INITIALIZERS
        return Pending(pinned(init), self._decided(init, is_default))

    def norm(
        self, path: Path, layer: type, values: Mapping[str, Any], otherwise: str = "explicit"
    ) -> None:
        """Takes note of a layer's epsilon and momentum, where it has them."""
        defaults = _own_defaults(layer)
        found = {name: values[name] for name in AT_APPLY if is_number(values.get(name))}
        for name, number in found.items():
            decided_by = self._decided(number, number is defaults.get(name), otherwise)
            self.norms.setdefault(path, {})[name] = float(number), decided_by

    def _decided(self, value: Any, is_default: bool, otherwise: str = "explicit") -> str:
        systems = [system for given, system in self._given if given is value]
        return systems[-1] if systems else "default" if is_default else otherwise
