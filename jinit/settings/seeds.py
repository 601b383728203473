"""The seed of the run."""

from jinit._parsing import integer, optional
from jinit.reproducibility.generators import require_mt19937
from jinit.reproducibility.seeds import MAX_SEED, get_random_seed, seed_process
from jinit.settings.setting import Choice, Setting, Source

__all__ = ["SEED", "common_seed"]


def _apply(seed: int) -> None:
    import jax

    seed_process(seed, jax.process_index())


def _verify(choice: Choice) -> None:
    require_mt19937()


SEED = Setting(
    name="seed",
    variables=(Source("JINIT_SEED", integer(0, MAX_SEED, text=True)),),
    arguments=(Source("seed", optional(integer(0, MAX_SEED))),),
    apply=_apply,
    fallback=get_random_seed,
    verify=_verify,
)


def common_seed(choice: Choice) -> int:
    """Agrees with the other processes of the run on one seed.

    Args:
        choice: This process's seed; one that was drawn gives way to process 0's, or to one that
            another process was given.

    Raises:
        ValueError: Two processes were given different seeds; raised on every process.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return choice.value
    mine = np.array([choice.value, choice.asked is not None], np.uint32)
    seeds, given = multihost_utils.process_allgather(mine).T
    asked = {int(process): int(seeds[process]) for process in np.flatnonzero(given)}
    if len(set(asked.values())) > 1:
        raise ValueError(
            f"The processes of a run must have one seed, not {asked} by process: pass the same "
            "everywhere; jinit.fold_in_process(key) gives each process a key of its own."
        )
    return next(iter(asked.values()), int(seeds[0]))
