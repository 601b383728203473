"""Random programs: what autocast, rolling and evaluation must keep of any of them."""

import jax
import pytest

from tests.fuzz.checks import check_program
from tests.fuzz.programs import SMALL

QUICK, THOROUGH, SLOW = {1, 4, 6, 8}, 30, 500


@pytest.fixture(autouse=True, scope="module")
def compiled_in_haste():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


SEEDS = [
    pytest.param(seed, marks=() if seed in QUICK else pytest.mark.thorough)
    for seed in range(THOROUGH)
]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_program_is_kept(seed):
    check_program(seed, halves=[("bfloat16", "float16")[seed % 2]])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SMALL, SMALL + SLOW))
def test_many_programs_are_kept(seed):
    check_program(seed)
