"""The devices that arrays are drawn on, each its own part."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jinit.fastinit.drawing.schedule import Shape

__all__ = ["Devices"]

_SHAPES = {"cpu": Shape(rows=256, width=4096)}  # what is drawn at a time fits the caches
_SHAPE = Shape(rows=2048, width=8192)
_AXIS = "device"


@dataclass(frozen=True)
class Devices:
    """Where leaves are drawn: on devices, each its own part, or on the default one.

    Attributes:
        devices: The devices, in the order in which parts are listed; None is the default one.
    """

    devices: tuple[Any, ...] | None

    @property
    def count(self) -> int:
        """How many devices."""
        return 1 if self.devices is None else len(self.devices)

    @property
    def shape(self) -> Shape:
        """How much is drawn at a time."""
        platform = self.devices[0].platform if self.devices else jax.default_backend()
        return _SHAPES.get(platform, _SHAPE)

    @functools.cached_property
    def mesh(self) -> Mesh | None:
        """The devices in a row."""
        return None if self.devices is None else Mesh(np.array(self.devices), (_AXIS,))

    @functools.cached_property
    def sharding(self) -> NamedSharding | None:
        """How an array lies on them whose first axis is the device's."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(_AXIS))

    def spread(self, function: Callable[..., Any], specs: Sequence[bool]) -> Callable[..., Any]:
        """Makes of a function of one device's part one of all; the first axis is the device's.

        Args:
            function: The function.
            specs: Of every argument whether it has a part for every device, or is the same on all.
        """
        if self.mesh is None:
            return function
        parts = tuple(PartitionSpec(_AXIS) if split else PartitionSpec() for split in specs)
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=parts,
            out_specs=PartitionSpec(_AXIS),
            check_vma=False,  # constants in a recipe vary over no axis, and need no cast
        )

    def index(self) -> Any:
        """Which of the devices a spread function runs on."""
        return 0 if self.mesh is None else jax.lax.axis_index(_AXIS)

    def active(self) -> contextlib.AbstractContextManager[Any]:
        """Makes their mesh the active one, whatever mesh the user has set."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
