"""Reads an NNX module, or a function that constructs one."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jinit.defaults.fans import flat_shape
from jinit.defaults.nnx import constructors
from jinit.defaults.observed import observing
from jinit.defaults.patches import Patches
from jinit.defaults.reading import NNX_LAYERS, RETRACE, UNKNOWN, Path, Pending, Reading

__all__ = ["read_nnx"]


def read_nnx(model: nnx.Module | Callable[[], nnx.Module]) -> tuple[dict[Path, Any], Reading]:
    """Returns the parameters of a module, abstractly, and what is known about them.

    A module that exists has forgotten how it was drawn: only its shapes and numbers are known.
    """
    reader = _Reader()
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

    patches = Patches(constructors(NNX_LAYERS))
    with observing(reader.constructed), RETRACE(object()):
        jax.eval_shape(construct)
    del patches
    return parameters, reader.reading


class _Reader:
    def __init__(self) -> None:
        self.reading = Reading()
        self._arguments: dict[int, dict[str, Any]] = {}
        self._pending: dict[int, dict[str, Pending]] = {}

    def constructed(
        self, layer: Any, values: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        self.reading.give(values)
        self._arguments.setdefault(id(layer), {}).update(arguments)
        self._pending.setdefault(id(layer), {}).update(
            {
                name.removesuffix("_init"): self.reading.pending(name, init)
                for name, init in arguments.items()
                if name.endswith("_init") and init is not None
            }
        )

    def read(self, model: nnx.Module) -> dict[Path, Any]:
        """Returns the parameters, abstractly; takes note of what is known of each."""
        parameters = {}
        for at, module in nnx.iter_modules(model):
            path = tuple(map(str, at))
            self._read_norm(path, module)
            for name, value in vars(module).items():
                if isinstance(value, nnx.Param):
                    array = value[...]
                    parameters[*path, name] = jax.ShapeDtypeStruct(array.shape, array.dtype)
                    self._read_parameter((*path, name), module, array.shape)
        return dict(sorted(parameters.items()))

    def _read_norm(self, path: Path, module: nnx.Module) -> None:
        known = self._arguments.get(id(module))
        if known is None:
            self.reading.norm(path, type(module), vars(module), otherwise=UNKNOWN)
        else:
            self.reading.norm(path, type(module), known)

    def _read_parameter(self, path: Path, module: nnx.Module, shape: tuple[int, ...]) -> None:
        pending = self._pending.get(id(module), {}).get(path[-1])
        if pending is None:
            return
        if isinstance(module, nnx.LinearGeneral):
            shape = flat_shape(path[-1], shape, module.out_features)
        self.reading.drawn[path] = pending.explain(shape)
