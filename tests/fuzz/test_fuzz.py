"""Random programs: what autocast, rolling and evaluation must keep of any of them."""

import jax
import pytest

from tests.fuzz.checks import check_program
from tests.fuzz.programs import SMALL

QUICK, THOROUGH, SLOW = 10, 30, 500


@pytest.fixture(autouse=True, scope="module")
def compiled_in_haste():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


SEEDS = [*range(QUICK), *(pytest.param(seed, marks=pytest.mark.thorough)
                          for seed in range(QUICK, THOROUGH))]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_a_program_is_kept(seed):
    check_program(seed, halves=[("bfloat16", "float16")[seed % 2]])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SMALL, SMALL + SLOW))
def test_many_programs_are_kept(seed):
    check_program(seed)
