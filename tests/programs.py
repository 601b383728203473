"""Names that the programs of these tests share: ``from tests.programs import *``."""

import json
import multiprocessing
import os
import random
import warnings
from pathlib import Path

import jax
import numpy as np
from jax._src.xla_bridge import backends_are_initialized as backend_is_up

import jinit

__all__ = [
    "backend_is_up",
    "caught_in",
    "jax",
    "jinit",
    "json",
    "multiprocessing",
    "np",
    "os",
    "pool",
    "product",
    "random",
    "rows",
    "state",
    "warnings",
]


def pool():
    """The threads of XLA's CPU pool."""
    comms = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return comms.count("tf_XLAEigen\n")


def rows(*names):
    """The rows of the report: value, origin, source, status."""
    found = jinit.startup_report().to_dict()["settings"]
    kept = names or tuple(found)
    return {n: [found[n][key] for key in ("value", "origin", "source", "status")] for n in kept}


def product():
    """A matrix product, as it is given to the compiler."""
    square = np.ones((2, 2), "f")
    return jax.jit(jax.numpy.dot).lower(square, square).as_text()


def state():
    """All that a startup could have changed."""
    options = {
        name: value for name, value in jax.config.values.items() if name != "jax_log_compiles"
    }
    return (
        *(random.getstate(), str(np.random.get_state(legacy=False)), dict(os.environ), options),
        *(multiprocessing.get_start_method(allow_none=True), backend_is_up()),
        jax.distributed.is_initialized(),
    )


def caught_in(fn):
    """The texts of the warnings in a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fn()
    return [str(warning.message) for warning in caught]
