"""Checks the programs of the seeds given: ``python -m tests.fuzz SEED ...``."""

import sys

import jax

from tests.fuzz.checks import check_program
from tests.fuzz.programs import program_of

if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_disable_most_optimizations", True)
    for seed in map(int, sys.argv[1:]):
        print(program_of(seed))
        check_program(seed)
