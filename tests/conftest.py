"""Every test runs on eight CPU devices, with warnings as errors and strict rank promotion."""

import contextlib
import gc
import logging
import os
import shutil

import jax
import pytest

from tests import compiler, selection

jax.config.update("jax_numpy_rank_promotion", "raise")

MOST_KEPT = 2**30  # a run of everything leaves a tenth of it
SELDOM = 100_000  # new objects between two searches for cycles; Python's own is 700


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees what a module compiled: thousands of programs exhaust the memory maps of a process."""
    yield
    jax.clear_caches()


@pytest.fixture(params=["typed", "legacy"])
def make_key(request):
    """Both kinds of JAX keys: every function that takes a key must take either."""
    return jax.random.key if request.param == "typed" else jax.random.PRNGKey


def pytest_addoption(parser):
    selection.add_options(parser)


def pytest_configure(config):
    quick = "" if config.option.optimize else compiler.QUICK
    flags = [os.environ.get("XLA_FLAGS", ""), compiler.DEVICES, quick]
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    _keep_programs(config)
    if config.option.minutes:
        config.pluginmanager.register(selection.Deadline(config.option.minutes))


def _keep_programs(config):
    """Keeps compiled programs for all workers and later runs.

    Until ``pytest --cache-clear``, or until a run begins with more than MOST_KEPT bytes of them.
    """
    if hasattr(config, "cache"):
        folder = config.cache.mkdir("programs")
        begins = not hasattr(config, "workerinput")  # a worker's files may be another's by now
        if begins and sum(file.stat().st_size for file in folder.iterdir()) > MOST_KEPT:
            shutil.rmtree(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def pytest_collection_modifyitems(config, items):
    selection.choose(config, items)


def pytest_collection_finish():
    """Spares Python to go through JAX's objects again and again, a tenth of the whole time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(SELDOM)


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
