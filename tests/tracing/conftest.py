"""These programs are large and run once: they are compiled without most of the optimizations."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def compiled_in_haste():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
