"""The fields of a saved state as a table, and the readers that check and convert them.

A reader takes the path of a value, the value, and the list to which it adds what is wrong; it
converts what is right and changes nothing. So one reading finds all faults.
"""

import reprlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from jinit.reproducibility.keys import wrap_key

if TYPE_CHECKING:
    import numpy as np

__all__ = ["NumpyState", "ProcessState", "PythonState", "read_state"]

Reader = Callable[[str, Any, list[str]], Any]

_MISSING = object()
_SHOWN = 8
_MT_WORDS = 624


class PythonState(TypedDict):
    """Python's generator, as ``random.getstate`` has it."""

    version: int
    state: "np.ndarray"
    has_gauss: int
    gauss: float


class NumpyState(TypedDict):
    """NumPy's global generator, as ``numpy.random.get_state`` has it."""

    state: "np.ndarray"
    pos: int
    has_gauss: int
    gauss: float


class ProcessState(TypedDict):
    """What ``get_rng_state`` saves of one process; ``_ENTRY`` says what each field may hold."""

    python: PythonState
    numpy: NumpyState
    keys: "dict[str, dict[str, np.ndarray]]"


def read_state(state: object) -> list[dict[str, Any]]:
    """Converts a saved state, or raises a ValueError that names each field at fault.

    What it returns is a ``ProcessState`` a process, but that its keys are JAX keys again.
    """
    problems: list[str] = []
    if not isinstance(state, list | tuple) or not state:
        expected(problems, "rng_state", "a list of one entry for each process", state)
        state = []
    entries = [_ENTRY(f"rng_state[{i}]", entry, problems) for i, entry in enumerate(state)]
    refuse(problems)
    return entries


def refuse(problems: list[str]) -> None:
    """Raises what was found wrong, if anything was."""
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise ValueError(
            "\n  ".join(
                [
                    "This is no RNG state that can be restored, and nothing was changed:",
                    *problems[:_SHOWN],
                    *more,
                    "Pass what get_rng_state returned, or load another checkpoint.",
                ]
            )
        )


def expected(problems: list[str], path: str, legal: str, found: Any = _MISSING) -> None:
    """Adds a fault."""
    problems.append(f"{path}: expected {legal}, found {_description(found)}")


def record(fields: Mapping[str, Reader]) -> Reader:
    """Makes the reader of a dict with exactly these fields."""

    def read(path: str, value: Any, problems: list[str]) -> Any:
        if not isinstance(value, Mapping):
            return expected(problems, path, f"a dict of {', '.join(fields)}", value)
        for name in value:
            if name not in fields:
                expected(problems, member(path, name), "no such field", value[name])
        return {
            name: reader(member(path, name), value.get(name, _MISSING), problems)
            for name, reader in fields.items()
        }

    return read


def member(path: str, name: Any) -> str:
    """The path of a dict's field."""
    return f'{path}["{name}"]'


def integer(low: int, high: int) -> Reader:
    """Makes the reader of an integer, which may be a zero-dimensional array."""
    legal = str(low) if low == high else f"an integer in [{low}, {high}]"

    def read(path: str, value: Any, problems: list[str]) -> int | None:
        array = _array(value)
        if array is None or array.ndim or array.dtype.kind not in "iu":
            return expected(problems, path, legal, value)
        number = int(array)
        return number if low <= number <= high else expected(problems, path, legal, value)

    return read


def float64(path: str, value: Any, problems: list[str]) -> float | None:
    """Reads a float; a narrower one has lost digits of the stream, unless it is zero."""
    import numpy as np

    array = _array(value)
    if array is None or array.ndim or array.dtype.kind != "f" or not np.isfinite(array):
        return expected(problems, path, "a finite float64", value)
    if array.dtype != np.float64 and array != 0:
        return expected(problems, path, "a finite float64", value)
    return float(array)


def words(length: int, last: Reader | None = None) -> Reader:
    """Makes the reader of a vector of 32-bit words, the last of which may be a position."""
    legal = f"uint32[{length}]"

    def read(path: str, value: Any, problems: list[str]) -> Any:
        array = _words(value)
        if array is None or array.shape != (length,):
            return expected(problems, path, legal, value)
        if not array[:_MT_WORDS].any():  # from which it never draws anything but 0
            return expected(problems, path, f"{legal} that are not all 0", value)
        if last is not None:
            last(f"{path}[{length - 1}]", array[-1], problems)
        return array

    return read


def keys(path: str, value: Any, problems: list[str]) -> Any:
    """Reads keys by name."""
    if not isinstance(value, Mapping):
        return expected(problems, path, "a dict of keys by name", value)
    return {name: _key(member(path, name), packed, problems) for name, packed in value.items()}


def _key(path: str, packed: Any, problems: list[str]) -> Any:
    if not isinstance(packed, Mapping) or len(packed) != 1:
        legal = "a dict of the name of one PRNG implementation (or raw) and its words"
        return expected(problems, path, legal, packed)
    ((implementation, value),) = packed.items()
    path, data = member(path, implementation), _words(value)
    if data is None or data.size == 0:
        return expected(problems, path, "uint32 words", value)
    try:
        return wrap_key(implementation, data)
    except (TypeError, ValueError) as error:
        reason = str(error).partition(" for impl=")[0]  # JAX goes on with addresses of functions
        return expected(problems, path, f"a key ({reason})", value)


def _words(value: Any) -> "np.ndarray | None":
    """A uint32 array, also from nested lists as JSON has them; None where it is neither."""
    import numpy as np

    array = _array(value)
    if array is None:
        return None
    if isinstance(value, list) and array.dtype.kind == "i":
        legal = array.min() >= 0 and array.max() <= np.iinfo(np.uint32).max
        return array.astype(np.uint32) if legal else None
    return array if array.dtype == np.uint32 else None


def _array(value: Any) -> "np.ndarray | None":
    """What is not of one shape, or has no values, is not an array."""
    import numpy as np

    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _description(found: Any) -> str:
    if found is _MISSING:
        return "nothing"
    if getattr(found, "shape", None):
        return f"{found.dtype}[{', '.join(map(str, found.shape))}]"
    if isinstance(found, list) and found:
        return f"a list of {len(found)}, {reprlib.repr(found)}"
    return reprlib.repr(found)


_ENTRY = record(
    {
        "python": record(
            {
                "version": integer(3, 3),
                "state": words(625, last=integer(0, 624)),
                "has_gauss": integer(0, 1),
                "gauss": float64,
            }
        ),
        "numpy": record(
            {
                "state": words(624),
                "pos": integer(0, 624),
                "has_gauss": integer(0, 1),
                "gauss": float64,
            }
        ),
        "keys": keys,
    }
)
"""What ``get_rng_state`` saves of one process."""
