"""jinit: the first minutes of a JAX model's life.

Starts the process, draws the parameters, scales them until signal and gradients flow, and
chooses the precision they are trained in. Every public name is listed here; apart from
``startup`` each is imported when it is first used, so that ``import jinit`` stays cheap.
"""

import importlib
import warnings
from typing import TYPE_CHECKING

from jinit import _known

# Bound now: the module ``jinit.startup``, imported later, would take the function's name.
from jinit.startup import startup, startup_report

if TYPE_CHECKING:
    from jinit import amp, defaults, empirical, initializers, inspect, reproducibility
    from jinit import typing as typing
    from jinit.defaults import global_keras_initializers, keras_defaults, torch_defaults
    from jinit.empirical import Calibration, calibrate, empirical_init
    from jinit.fastinit import FastInit, count, fast_init
    from jinit.inspect import CoordCheck, coord_check, describe
    from jinit.reproducibility import (
        MAX_SEED,
        fold_in_process,
        get_random_seed,
        get_rng_state,
        load_rng_state,
        seed_all,
        seed_context,
        seed_workers,
    )
    from jinit.settings.determinism import configure_deterministic_mode

__version__ = "0.1.0"

__all__ = [
    "MAX_SEED",
    "Calibration",
    "CoordCheck",
    "FastInit",
    "__version__",
    "amp",
    "calibrate",
    "configure_deterministic_mode",
    "coord_check",
    "count",
    "defaults",
    "describe",
    "empirical",
    "empirical_init",
    "fast_init",
    "fold_in_process",
    "get_random_seed",
    "get_rng_state",
    "global_keras_initializers",
    "initializers",
    "inspect",
    "keras_defaults",
    "load_rng_state",
    "reproducibility",
    "seed_all",
    "seed_context",
    "seed_workers",
    "startup",
    "startup_report",
    "torch_defaults",
]

_NAMES = {
    "jinit.defaults": ("global_keras_initializers", "keras_defaults", "torch_defaults"),
    "jinit.empirical": ("Calibration", "calibrate", "empirical_init"),
    "jinit.fastinit": ("FastInit", "count", "fast_init"),
    "jinit.inspect": ("CoordCheck", "coord_check", "describe"),
    "jinit.reproducibility": (
        *("MAX_SEED", "fold_in_process", "get_random_seed", "get_rng_state", "load_rng_state"),
        *("seed_all", "seed_context", "seed_workers"),
    ),
    "jinit.settings.determinism": ("configure_deterministic_mode",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_MOVED = {
    **dict.fromkeys(("Normed", "get_wrapped_submodules", "wrap_all_leaf_modules"), "empirical"),
    "register_key": "reproducibility",
}
"""Names that live in a submodule, and still answer here."""

_SUBMODULES = {
    *("amp", "defaults", "empirical", "initializers", "inspect", "reproducibility"),
    "typing",  # not in __all__: import * would replace the standard library's
}


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return importlib.import_module(f"jinit.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _MOVED:
        home = f"jinit.{_MOVED[name]}"
        warnings.warn(f"jinit.{name} is {home}.{name} now", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(home), name)
    return _known.known_names("jinit", __all__)(name)


def __dir__() -> list[str]:
    return sorted(__all__)
