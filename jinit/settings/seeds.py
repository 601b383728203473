"""The seed of the process."""

from jinit.reproducibility import MAX_SEED, get_random_seed, seed_all
from jinit.settings.parsing import integer, optional
from jinit.settings.setting import Setting, Source

__all__ = ["SEED"]

SEED = Setting(
    name="seed",
    variables=(Source("JINIT_SEED", integer(0, MAX_SEED, text=True)),),
    arguments=(Source("seed", optional(integer(0, MAX_SEED))),),
    apply=seed_all,
    fallback=get_random_seed,
)
