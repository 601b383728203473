"""Seeds: one number from which a run can be repeated."""

import os

from jinit._known import known_arguments
from jinit._parsing import integer
from jinit.reproducibility.generators import seed_from_sequence, seed_generators

__all__ = [
    "MAX_SEED",
    "get_random_seed",
    "parse_index",
    "parse_seed",
    "replace_root_seed",
    "root_seed",
    "seed_all",
    "seed_process",
]

MAX_SEED = 2**32 - 1
"""The greatest seed; beyond it, and below zero, ``jax.random.key`` gives two seeds one key."""

parse_seed = integer(0, MAX_SEED)
parse_index = integer(0, 2**31 - 1)

_root: int | None = None


def get_random_seed() -> int:
    """Draws a seed that no earlier seed decides.

    Returns:
        An integer in [0, ``MAX_SEED``], from the operating system's entropy: neither Python's
        nor NumPy's generator is read or advanced.

    Example:
        >>> 0 <= get_random_seed() <= MAX_SEED
        True

    Source:
        ``composer.utils.reproducibility.get_random_seed``, which reads the clock, so that two
        processes started at once may agree.
    """
    return int.from_bytes(os.urandom(4), "big")


@known_arguments
def seed_all(seed: int) -> None:
    """Seeds the global RNGs of the process, and records the seed as ``root_seed()``.

    They are Python's ``random`` and NumPy's global one, and PyTorch's and TensorFlow's where
    these are already imported: neither is imported for it. JAX has no global RNG: draw
    from ``jax.random.key(seed)``. The key is not made here, because that would start a backend.

    Args:
        seed: An integer (NumPy's too, but no bool) in [0, ``MAX_SEED``].

    Raises:
        TypeError: ``seed`` is not an integer; nothing is seeded.
        ValueError: ``seed`` is out of range; nothing is seeded.
        RuntimeError: NumPy's global generator is not MT19937; nothing is seeded.

    Example:
        >>> import random
        >>> seed_all(7)
        >>> first = random.random()
        >>> seed_all(7)
        >>> random.random() == first
        True

    Source:
        ``composer.utils.reproducibility.seed_all``, which imports PyTorch.
    """
    seed_process(seed, 0)


def seed_process(seed: int, process_index: int) -> None:
    """Seeds the global RNGs of one process of a run, each with streams of its own.

    Process 0 has those of ``seed_all(seed)``, as the only process of a run would; process ``k``
    those of ``np.random.SeedSequence(seed, spawn_key=(k,))``, 128 bits for Python and for NumPy,
    so that no sum overflows and thousands of processes do not meet.

    Args:
        seed: The run's seed, the same on all processes; recorded as ``root_seed()``.
        process_index: The number of this process, from 0.

    Raises:
        TypeError: An argument is not an integer; nothing is seeded.
        ValueError: An argument is out of range; nothing is seeded.
        RuntimeError: NumPy's global generator is not MT19937; nothing is seeded.

    Example:
        >>> import random
        >>> seed_process(7, process_index=1)
        >>> random.random() == random.Random(7).random()
        False
    """
    number, index = parse_seed("seed", seed), parse_index("process_index", process_index)
    import numpy as np

    if index == 0:
        seed_generators(number)
    else:
        seed_from_sequence(np.random.SeedSequence(number, spawn_key=(index,)))
    replace_root_seed(number)


def root_seed() -> int:
    """Returns the seed that the process was last seeded with.

    Returns:
        The run's seed, the same on each of its processes.

    Raises:
        RuntimeError: The process was not seeded yet.

    Example:
        >>> seed_all(7)
        >>> root_seed()
        7
    """
    if _root is None:
        raise RuntimeError(
            "There is no root seed yet: call jinit.startup(seed) or seed_all(seed) first, or "
            "pass seed=."
        )
    return _root


def replace_root_seed(seed: int | None) -> int | None:
    """Records another root seed, and returns the one it replaces."""
    global _root
    before, _root = _root, seed
    return before
