"""Seeds: what is seeded, what is refused, and that a refused seed changes nothing."""

import random

import numpy as np
import pytest

from jinit.reproducibility import MAX_SEED, get_random_seed, seed_all


@pytest.fixture(autouse=True)
def _generators_as_they_were():
    python, numpy = random.getstate(), np.random.get_state()
    yield
    random.setstate(python)
    np.random.set_state(numpy)


def _draw():
    return random.random(), float(np.random.random())


@pytest.mark.parametrize("seed", [0, 42, MAX_SEED, np.int64(42), np.uint32(MAX_SEED)])
def test_seed_all_seeds_python_and_numpy(seed):
    seed_all(seed)
    drawn = _draw()
    assert drawn == (random.Random(int(seed)).random(), np.random.RandomState(int(seed)).random())


@pytest.mark.parametrize(
    ("seed", "error", "shown"),
    [
        (-1, ValueError, "-1"),
        (2**32, ValueError, "4294967296"),
        (np.int64(-5), ValueError, "np.int64(-5)"),
        (True, TypeError, "True"),
        (np.True_, TypeError, "np.True_"),
        (3.0, TypeError, "3.0"),
        ("7", TypeError, "'7'"),
        (None, TypeError, "None"),
    ],
)
def test_seed_all_refuses_and_seeds_nothing(seed, error, shown):
    python, numpy = random.getstate(), np.random.get_state()
    with pytest.raises(error) as raised:
        seed_all(seed)
    assert str(raised.value) == (
        f"seed must be an integer in [0, 4294967295], not {shown}: pass one, or leave it out."
    )
    assert random.getstate() == python
    np.testing.assert_equal(np.random.get_state(), numpy)


def test_max_seed_is_the_last_that_has_a_key_of_its_own():
    import jax

    bits = [jax.random.bits(jax.random.key(seed)) for seed in (MAX_SEED, 0, MAX_SEED + 1)]
    assert bits[0] != bits[1]
    assert bits[1] == bits[2]


def test_random_seeds_are_legal_and_ignore_earlier_seeds():
    drawn = []
    for _ in range(20):
        seed_all(0)
        before = random.getstate()
        drawn.append(get_random_seed())
        assert random.getstate() == before
    assert all(0 <= seed <= MAX_SEED for seed in drawn)
    assert len(set(drawn)) > 15
