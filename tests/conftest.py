"""Every test runs on eight CPU devices, with warnings as errors and strict rank promotion."""

import contextlib
import logging
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees what a module compiled: thousands of programs exhaust the memory maps of a process."""
    yield
    jax.clear_caches()


@pytest.fixture(params=["typed", "legacy"])
def make_key(request):
    """Both kinds of JAX keys: every function that takes a key must take either."""
    return jax.random.key if request.param == "typed" else jax.random.PRNGKey


def pytest_collection_modifyitems(config, items):
    """Leaves out what is slow or thorough, and further cases, where they are not asked for."""
    if config.option.markexpr or any("::" in argument for argument in config.args):
        return
    left = _left_out(items)
    if left:
        config.hook.pytest_deselected(items=left)
        chosen = {*items} - {*left}
        items[:] = [item for item in items if item in chosen]


def _left_out(items):
    begun, left = set(), []
    for item in items:
        function, _, case = item.nodeid.partition("[")
        further = case and item.get_closest_marker("cases") and function in begun
        if further or any(map(item.get_closest_marker, ("slow", "thorough"))):
            left.append(item)
        begun.add(function)
    return left


@pytest.fixture
def count_compilations(caplog):
    """A context in which the names of compiled programs are collected in a list."""

    @contextlib.contextmanager
    def counting():
        compiled = []

        class Handler(logging.Handler):
            def emit(self, record):
                message = record.getMessage()
                if message.startswith("Compiling"):
                    compiled.append(message.split()[1])

        logger, handler = logging.getLogger("jax._src.interpreters.pxla"), Handler()
        logger.addHandler(handler)
        try:
            with jax.log_compiles():
                yield compiled
        finally:
            logger.removeHandler(handler)

    return counting


@pytest.fixture
def allow_rank_promotion():
    """For models written as users write them, with ``x @ w + b``."""
    with jax.numpy_rank_promotion("allow"):
        yield
