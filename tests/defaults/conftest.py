"""Initialising many small models is mostly compiling: leave out XLA's optimisations here."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def compile_fast():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    # Values are compared bit for bit: no program that was compiled otherwise may be left.
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
