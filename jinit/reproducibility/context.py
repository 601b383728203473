"""A block of code with streams of its own."""

import contextlib
import random
from collections.abc import Iterator

from jinit.reproducibility.generators import imported, seed_python_and_numpy
from jinit.reproducibility.seeds import parse_seed, replace_root_seed

__all__ = ["seed_context"]


def seed_context(seed: int) -> "contextlib._GeneratorContextManager[None]":
    """Seeds the global RNGs for a block, and gives them back as they were.

    Python's ``random``, NumPy's global generator, PyTorch's CPU generator where it is already
    imported, and ``root_seed()`` are as after ``seed_all(seed)`` inside the block, and as before
    after it, also where it raises. Blocks nest; the result decorates functions as well.
    TensorFlow is left alone, since its global seed cannot be read back, and so are PyTorch's GPU
    generators.

    Args:
        seed: An integer in [0, ``MAX_SEED``].

    Returns:
        A context manager; nothing is seeded before it is entered.

    Raises:
        TypeError: ``seed`` is not an integer.
        ValueError: ``seed`` is out of range.
        RuntimeError: On entering, NumPy's global generator is not MT19937.

    Example:
        >>> import random
        >>> from jinit.reproducibility import seed_all
        >>> seed_all(7)
        >>> with seed_context(42):
        ...     inside = random.random()
        >>> after = random.random()
        >>> seed_all(7)
        >>> random.random() == after
        True

    Source:
        ``composer.utils.reproducibility.seed_context``, which leaves the streams seeded where
        the block raises.
    """
    return _seeded(parse_seed("seed", seed))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with _torch_forked(seed), _python_and_numpy_kept():
        seed_python_and_numpy(seed, seed)
        before = replace_root_seed(seed)
        try:
            yield
        finally:
            replace_root_seed(before)


@contextlib.contextmanager
def _python_and_numpy_kept() -> Iterator[None]:
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _torch_forked(seed: int) -> Iterator[None]:
    fork = imported("torch", "random.fork_rng")
    set_seed = imported("torch", "default_generator.manual_seed")
    if fork is None or set_seed is None:
        yield
        return
    with fork(devices=[]):
        set_seed(seed)
        yield
