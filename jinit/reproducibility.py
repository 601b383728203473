"""Seeds: one number from which a run can be repeated."""

import os
import random

from jinit.settings.parsing import integer

__all__ = ["MAX_SEED", "get_random_seed", "seed_all"]

MAX_SEED = 2**32 - 1
"""The greatest seed; beyond it, and below zero, ``jax.random.key`` gives two seeds one key."""

_parse_seed = integer(0, MAX_SEED)


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


def seed_all(seed: int) -> None:
    """Seeds the hidden generators of the process: Python's ``random`` and NumPy's global one.

    JAX has no hidden generator: draw from ``jax.random.key(seed)``. The key is not made here,
    because that would start a backend, and data-loading workers seed themselves too.

    Args:
        seed: An integer (NumPy's too, but no bool) in [0, ``MAX_SEED``].

    Raises:
        TypeError: ``seed`` is not an integer; nothing is seeded.
        ValueError: ``seed`` is out of range; nothing is seeded.

    Example:
        >>> import random
        >>> seed_all(7)
        >>> first = random.random()
        >>> seed_all(7)
        >>> random.random() == first
        True

    Source:
        ``composer.utils.reproducibility.seed_all``, which seeds PyTorch as well.
    """
    number = _parse_seed("seed", seed)
    import numpy as np

    random.seed(number)
    np.random.seed(number)
