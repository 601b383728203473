"""Where the parts of a leaf are drawn, and how they become one array with its sharding."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from jinit.fastinit.drawing.blocks import block_of
from jinit.fastinit.drawing.devices import Devices
from jinit.fastinit.drawing.schedule import Strip
from jinit.fastinit.reading.recipe import Ingredients

__all__ = [
    "devices_of",
    "finished",
    "joined",
    "leading_axes",
    "local_shape",
    "place",
    "replicated",
    "strips_of",
]


def devices_of(sharding: Sharding | None) -> Devices:
    """Returns the devices that a sharding lies on, in one order for all shardings on them."""
    if sharding is None:
        return Devices(None)
    return Devices(tuple(sorted(sharding.device_set, key=lambda device: device.id)))


def replicated(devices: Devices) -> Sharding | None:
    """Returns the sharding of an array that all devices hold."""
    return None if devices.mesh is None else NamedSharding(devices.mesh, PartitionSpec())


def local_shape(shape: Sequence[int], sharding: Sharding | None) -> tuple[int, ...]:
    """Returns the shape of every device's part."""
    return tuple(shape) if sharding is None else sharding.shard_shape(tuple(shape))


def _corners(
    shape: tuple[int, ...], sharding: Sharding | None, devices: Devices
) -> list[tuple[int, ...]]:
    """Returns by device where its part begins along every axis."""
    if sharding is None:
        return [(0,) * len(shape)]
    indices = sharding.devices_indices_map(shape)
    return [tuple(part.start or 0 for part in indices[device]) for device in devices.devices or ()]


def strips_of(
    shape: tuple[int, ...], parts: Sequence[Ingredients], sharding: Sharding | None
) -> tuple[Strip, ...]:
    """Divides every device's part of an array into what is drawn with one key.

    Args:
        shape: The array's shape.
        parts: Keys and numbers of its equal segments.
        sharding: Its sharding.

    Returns:
        The strips. With a sharding the array's first axes must be those of its segments.
    """
    devices = devices_of(sharding)
    leading = leading_axes(shape, len(parts))
    if leading is None:
        shape, leading = (len(parts), math.prod(shape) // len(parts)), 1
    corners = _corners(shape, sharding, devices)
    sizes = local_shape(shape, sharding)
    segments = [_segments(shape[:leading], corner, sizes) for corner in corners]
    blocks = [block_of(shape[leading:], corner[leading:], sizes[leading:]) for corner in corners]
    return tuple(
        Strip(tuple(parts[number] for number in here), tuple(blocks))
        for here in zip(*segments, strict=True)
    )


def leading_axes(shape: Sequence[int], parts: int) -> int | None:
    """Returns how many of the first axes number the parts of an array; None where none do."""
    for count in range(len(shape) + 1):
        if math.prod(shape[:count]) == parts:
            return count
    return None


def _segments(axes: Sequence[int], corner: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Lists the segments in a block of the first axes, in order."""
    ranges = [range(c, c + n) for _, c, n in zip(axes, corner, sizes, strict=False)]
    grid = np.arange(math.prod(axes)).reshape(tuple(axes))
    return grid[np.ix_(*ranges)].reshape(-1).tolist() if axes else [0]


def joined(parts: Any, shape: tuple[int, ...], sharding: Sharding | None) -> Any:
    """Makes one array of the devices' parts, without a copy."""
    if sharding is None:
        return parts
    if isinstance(parts, jax.ShapeDtypeStruct):  # only lowered
        return jax.ShapeDtypeStruct(shape, parts.dtype, sharding=sharding)
    by_device = {shard.device: shard.data for shard in parts.addressable_shards}
    own = [by_device[device] for device in sharding.addressable_devices_indices_map(shape)]
    if not shape:
        return place(np.asarray(own[0]).reshape(()), sharding)
    kind = parts.sharding.memory_kind
    return jax.make_array_from_single_device_arrays(shape, sharding.with_memory_kind(kind), own)


def finished(array: jax.Array, sharding: Sharding | None, weak_type: bool) -> jax.Array:
    """Returns an array in its kind of memory, and which gives way to other dtypes where it should.

    Args:
        array: The array, on its devices.
        sharding: What was asked for.
        weak_type: Whether it gives way, as Python's numbers do.
    """
    if weak_type:
        array = jax.lax.convert_element_type_p.bind(
            array, new_dtype=array.dtype, weak_type=True, sharding=None
        )
    if sharding is None or sharding.memory_kind in (None, array.sharding.memory_kind):
        return array
    return jax.device_put(array, sharding)


def place(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
    """Puts an array from the host on the devices."""
    if sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
