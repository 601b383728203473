"""Every test leaves the generators, the root seed and the registered keys as it found them."""

import random

import numpy as np
import pytest

from jinit.reproducibility import keys, seeds


@pytest.fixture(autouse=True)
def _streams_as_they_were():
    python, numpy, root = random.getstate(), np.random.get_state(), seeds.replace_root_seed(None)
    generator = np.random.get_bit_generator()
    yield
    assert not keys.registered_keys(), "a test left a key registered"
    np.random.set_bit_generator(generator)
    random.setstate(python)
    np.random.set_state(numpy)
    seeds.replace_root_seed(root)


@pytest.fixture
def another_numpy_generator():
    """PCG64 as NumPy's global generator, which has no state that can be saved."""
    np.random.set_bit_generator(np.random.PCG64(1))
    return (
        "NumPy's global generator is PCG64, but only MT19937 can be seeded, saved and restored "
        "here: call np.random.set_bit_generator(np.random.MT19937()) first."
    )
