"""What is said where a device has not enough memory."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Sharding

from jinit._arithmetic import bytes_of
from jinit._tables import format_bytes
from jinit.fastinit.drawing.placing import local_shape
from jinit.fastinit.program import InitProgram

__all__ = ["explained"]


@contextlib.contextmanager
def explained(
    program: InitProgram, shardings: Sequence[Sharding | None], made: Mapping[int, Any]
) -> Iterator[None]:
    """Says which arrays were asked for, and how large they are, where there is no room for them.

    Args:
        program: The initialization.
        shardings: Those of its leaves.
        made: The leaves that are made by then.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise MemoryError(_text(program, shardings, made)) from error


def _text(
    program: InitProgram, shardings: Sequence[Sharding | None], made: Mapping[int, Any]
) -> str:
    sizes = [
        bytes_of(local_shape(leaf.shape, sharding), leaf.dtype)
        for leaf, sharding in zip(program.leaves, shardings, strict=True)
    ]
    open_leaves = [number for number in range(len(sizes)) if number not in made]
    largest = sorted(open_leaves, key=lambda number: -sizes[number])[:3]
    asked = ", ".join(
        f"{program.leaves[n].path} of {program.leaves[n].dtype}{list(program.leaves[n].shape)} "
        f"({format_bytes(sizes[n])})"
        for n in largest
    )
    devices = max(len(sharding.device_set) if sharding else 1 for sharding in shardings)
    ready = sum(sizes[number] for number in made)
    where = "the device" if devices == 1 else f"each of {devices} devices"
    return (
        f"not enough memory on {where}: {len(made)} of {len(sizes)} arrays were made "
        f"({format_bytes(ready)} there), and the largest of the rest are {asked}; in all "
        f"{format_bytes(sum(sizes))} are asked for there. Divide them by out_shardings over more "
        "devices, or initialize in a smaller dtype (param_dtype)"
    )
