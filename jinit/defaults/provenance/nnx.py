"""Reads an NNX module, or a function that constructs one."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx

from jinit.defaults.nnx import constructors
from jinit.defaults.observer import observing
from jinit.defaults.patches import Patches
from jinit.defaults.provenance.reading import NNX_LAYERS, RETRACE, UNKNOWN, Path, Pending, Reading
from jinit.defaults.tables.fans import flat_shape
from jinit.initializers.fans import compute_fans

__all__ = ["read_nnx"]


def read_nnx(model: nnx.Module | Callable[[], nnx.Module]) -> tuple[dict[Path, Any], Reading]:
    """Returns the parameters of a module, abstractly, and what is known about them.

    A module that exists has forgotten how it was drawn: only its shapes and numbers are known.
    """
    reader = _Reader(exists=isinstance(model, nnx.Module))
    if isinstance(model, nnx.Module):
        return reader.read(model), reader.reading
    parameters: dict[Path, Any] = {}

    def construct() -> None:
        constructed = model()
        if not isinstance(constructed, nnx.Module):
            raise TypeError(
                "describe takes a function that constructs an NNX module, got one that returns "
                f"{type(constructed).__name__}"
            )
        parameters.update(reader.read(constructed))

    with (
        contextlib.closing(Patches(constructors(NNX_LAYERS))),
        observing(reader.constructed, reader.built),
        RETRACE(object()),
    ):
        jax.eval_shape(construct)
    return parameters, reader.reading


@dataclass
class _Layer:
    """What is known of a layer since it was constructed.

    Attributes:
        arguments: Those of its constructors, with what the active table gave.
        pending: What draws its parameters, by their names.
        shapes: The shapes that were drawn, without the axes along which layers are stacked.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    pending: dict[str, Pending] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


_MARK = "jinit_described"
"""A static attribute: what NNX's transformations return are other objects, with the attributes."""

_marks = itertools.count()


class _Reader:
    def __init__(self, exists: bool) -> None:
        self.reading, self._exists = Reading(), exists
        self._layers: dict[int, _Layer] = {}

    def constructed(
        self, layer: Any, values: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        self.reading.give(values)
        known = self._known(layer)
        if known is None:
            mark = next(_marks)
            setattr(layer, _MARK, mark)
            known = self._layers[mark] = _Layer()
        known.arguments.update(arguments)
        known.pending.update(
            {
                name.removesuffix("_init"): self.reading.pending(name, init)
                for name, init in arguments.items()
                if name.endswith("_init") and init is not None
            }
        )

    def built(self, layer: Any) -> None:
        known = self._known(layer)
        if known is not None:
            known.shapes.update({name: array.shape for name, array in _parameters(layer)})

    def _known(self, layer: Any) -> _Layer | None:
        return self._layers.get(vars(layer).get(_MARK, -1))

    def read(self, model: nnx.Module) -> dict[Path, Any]:
        """Returns the parameters, abstractly; takes note of what is known of each."""
        parameters = {}
        for at, module in nnx.iter_modules(model):
            path = tuple(map(str, at))
            self._read_norm(path, module)
            for name, array in _parameters(module):
                parameters[*path, name] = jax.ShapeDtypeStruct(array.shape, array.dtype)
                self._read_parameter((*path, name), module, array.shape)
        return dict(sorted(parameters.items()))

    def _read_norm(self, path: Path, module: nnx.Module) -> None:
        known = self._known(module)
        if known is None:
            self.reading.norm(path, type(module), vars(module), otherwise=UNKNOWN)
        else:
            self.reading.norm(path, type(module), known.arguments)

    def _read_parameter(self, path: Path, module: nnx.Module, shape: tuple[int, ...]) -> None:
        known = self._known(module)
        pending = known and known.pending.get(path[-1])
        shape = known.shapes.get(path[-1], shape) if known else shape
        if isinstance(module, nnx.LinearGeneral):
            shape = flat_shape(path[-1], shape, module.out_features)
        if pending:
            self.reading.drawn[path] = pending.explain(shape)
        elif self._exists and path[-1] == "kernel" and len(shape) == _kernel_rank(module):
            self.reading.drawn[path] = UNKNOWN, compute_fans(shape), UNKNOWN


def _kernel_rank(module: nnx.Module) -> int | None:
    """Returns the number of axes of a layer's kernel, where no layers are stacked."""
    if isinstance(module, nnx.Conv):
        size = module.kernel_size
        return 2 + (len(size) if isinstance(size, Sequence) else 1)
    return 2 if isinstance(module, nnx.Linear | nnx.LinearGeneral) else None


def _parameters(module: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Yields the arrays of a module's own parameters, or their shapes."""
    for name, value in vars(module).items():
        if isinstance(value, nnx.Param):
            yield name, value.get_raw_value()
