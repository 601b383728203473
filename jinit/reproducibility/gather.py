"""Every process's entry, on every process: as JSON, since what is read back may be foreign."""

import json
from typing import Any

from jinit.reproducibility.processes import process_count
from jinit.reproducibility.schema import ProcessState

__all__ = ["gather"]


def gather(entry: ProcessState) -> list[ProcessState]:
    """Lists the entries of all processes in their order; all of them must call it."""
    if process_count() == 1:
        return [entry]
    return [_decode(text) for text in _gather_bytes(_encode(entry))]


def _encode(entry: ProcessState) -> bytes:
    return json.dumps(entry, default=lambda array: array.tolist()).encode()


def _decode(text: bytes) -> ProcessState:
    import numpy as np

    def with_arrays(fields: dict[str, Any]) -> dict[str, Any]:
        return {
            name: np.asarray(value, np.uint32) if isinstance(value, list) else value
            for name, value in fields.items()
        }

    return json.loads(text, object_hook=with_arrays)


def _gather_bytes(text: bytes) -> list[bytes]:
    import numpy as np
    from jax.experimental import multihost_utils

    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]
