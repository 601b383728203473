"""Initializers draw in programs of their own, and compiling these is what the tests wait for."""

import jax
import pytest


@pytest.fixture(scope="module")
def compile_fast():
    """Leaves out XLA's optimisations, for tests that do not look at the last bit."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
