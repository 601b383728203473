"""Every test runs on eight CPU devices, with warnings as errors and strict rank promotion."""

import contextlib
import logging
import os
from importlib.metadata import version

import jax
import pytest

from tests import selection

FLAGS = ["--xla_force_host_platform_device_count=8"]
QUICK_TO_COMPILE = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if version("jaxlib").startswith("0.10."):  # later ones have no other emitters
    QUICK_TO_COMPILE.append("--xla_cpu_use_fusion_emitters=false")

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


def pytest_addoption(parser):
    selection.add_options(parser)
    parser.getgroup("jinit").addoption(
        "--optimize",
        action="store_true",
        help="let XLA optimize as for users; else it compiles in half the time",
    )


def pytest_configure(config):
    flags = [os.environ.get("XLA_FLAGS", ""), *FLAGS]
    if not config.option.optimize:
        flags += QUICK_TO_COMPILE
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    if config.option.minutes:
        config.pluginmanager.register(selection.Deadline(config.option.minutes))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config, items):
    selection.choose(config, items)
    selection.keep_files_together(items)


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
