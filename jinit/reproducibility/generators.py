"""The global RNGs of a process: Python's, NumPy's, and those of frameworks in use."""

import random
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "imported",
    "require_mt19937",
    "seed_from_sequence",
    "seed_generators",
    "seed_python_and_numpy",
]


def seed_generators(seed: int) -> None:
    """Seeds Python's, NumPy's, PyTorch's and TensorFlow's generators with one 32-bit number."""
    seed_python_and_numpy(seed, seed)
    _seed_frameworks(seed)


def seed_from_sequence(sequence: "np.random.SeedSequence") -> None:
    """Seeds them with words of their own: 128 bits for Python and NumPy, 63 for the others.

    Python and NumPy seed the same algorithm: given the same words they would draw the same. Of
    the 63, PyTorch's CPU generator takes the lower 32.
    """
    words = sequence.generate_state(10)
    seed_python_and_numpy(_number(words[:4]), words[4:8])
    _seed_frameworks(_number(words[8:]) >> 1)  # a signed number has to hold it


def seed_python_and_numpy(python: int, numpy: "int | np.ndarray") -> None:
    """Seeds the two that every process has, or neither."""
    import numpy as np

    require_mt19937()
    random.seed(python)
    np.random.seed(numpy)


def require_mt19937() -> None:
    """Refuses another global NumPy generator than the one that can be seeded and saved."""
    import numpy as np

    generator = np.random.get_bit_generator()  # pyright: ignore[reportAttributeAccessIssue]
    found = type(generator).__name__
    if found != "MT19937":
        raise RuntimeError(
            f"NumPy's global generator is {found}, but only MT19937 can be seeded, saved and "
            "restored here: call np.random.set_bit_generator(np.random.MT19937()) first."
        )


def imported(module: str, path: str) -> Any:
    """What a module has at a dotted path; None unless it is imported, and that far."""
    found = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _seed_frameworks(seed: int) -> None:
    for module, path in (("torch", "manual_seed"), ("tensorflow", "random.set_seed")):
        set_seed = imported(module, path)
        if set_seed is not None:
            set_seed(seed)


def _number(words: "np.ndarray") -> int:
    return int.from_bytes(words.astype("<u4").tobytes(), "little")
