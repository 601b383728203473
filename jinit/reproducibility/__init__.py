"""Reproducibility: one seed from which a run, its processes and its workers can be repeated.

``seed_all`` and ``seed_context`` seed the global RNGs of a process, ``fold_in_process``
and ``seed_workers`` give each process and each of its data-loading workers streams of its own,
and ``get_rng_state`` and ``load_rng_state`` carry all streams over an interruption.
"""

from jinit import _known
from jinit.reproducibility.context import seed_context
from jinit.reproducibility.keys import register_key
from jinit.reproducibility.processes import fold_in_process
from jinit.reproducibility.rng_state import get_rng_state, load_rng_state
from jinit.reproducibility.seeds import MAX_SEED, get_random_seed, root_seed, seed_all
from jinit.reproducibility.workers import WorkerSeeds, seed_workers

__all__ = [
    "MAX_SEED",
    "WorkerSeeds",
    "fold_in_process",
    "get_random_seed",
    "get_rng_state",
    "load_rng_state",
    "register_key",
    "root_seed",
    "seed_all",
    "seed_context",
    "seed_workers",
]

__getattr__ = _known.known_names(__name__, __all__)
