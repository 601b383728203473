"""The two experiments: levels of precision at a small depth, initializations at a great one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import jax

from jinit.demo.data import Digits
from jinit.demo.model import INITIALIZATIONS, Initialization
from jinit.demo.training import Recipe, Run, Trainer

__all__ = ["Outcome", "Progress", "compare_initializations", "compare_levels", "epochs_in"]

SEEDS = 3
FLAX_RATE = 4e-3  # Adam's best of 1e-3, 4e-3 and 1.6e-2 on this network
LEVELS = ("O0", "O1", "O2", "O3")
TOO_HIGH = 2.0**24

Progress = Callable[[str], None]
"""Called with a run's label after each of its epochs."""


@dataclass(frozen=True)
class Outcome:
    """What one recipe did, over seeds or over learning rates.

    Attributes:
        label: What the tables call it.
        runs: One a seed, or one a learning rate.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def accuracy(self) -> float:
        """The median test accuracy."""
        return median(run.accuracy for run in self.runs)

    @property
    def typical(self) -> Run:
        """The run of median accuracy."""
        return sorted(self.runs, key=lambda run: run.accuracy)[len(self.runs) // 2]

    @property
    def best(self) -> Run:
        """The run of least final loss."""
        return min(self.runs, key=lambda run: run.final_loss)


def level_recipes(opt_level: str, half_dtype: str, depth: int) -> list[Recipe]:
    """Lists Flax's defaults, the levels asked for, and a float16 scale that starts too high."""
    flax = Recipe("Flax's defaults, O0", "flax", depth, learning_rate=FLAX_RATE)
    levels = LEVELS if opt_level == "all" else (opt_level,)
    rate = 1 / depth
    ours = [
        Recipe(_label(level, half_dtype), "jinit", depth, level, half_dtype, rate)
        for level in levels
    ]
    high = Recipe(
        "jinit, O2 float16, high scale", "jinit", depth, "O2", "float16", rate,
        init_scale=TOO_HIGH,
    )  # fmt: skip
    return [flax, *ours, high]


def _label(level: str, half_dtype: str) -> str:
    return f"jinit, {level}" if level == "O0" else f"jinit, {level} {half_dtype}"


def compare_levels(
    recipes: Sequence[Recipe], data: Digits, key: jax.Array, progress: Progress
) -> list[Outcome]:
    """Trains every recipe from three seeds, the same three for all."""
    outcomes = []
    for recipe in recipes:
        trainer = Trainer(recipe, data)
        runs = [
            trainer.run(jax.random.fold_in(key, seed), on_epoch=lambda r=recipe: progress(r.label))
            for seed in range(SEEDS)
        ]
        outcomes.append(Outcome(recipe.label, tuple(runs)))
    return outcomes


def rates(how: Initialization, depth: int) -> list[float]:
    """Returns five learning rates, each twice the one before; jinit's fall with the depth."""
    middle = 0.5 / depth if how == "jinit" else 5e-4
    return [middle * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]


def depth_recipes(opt_level: str, half_dtype: str, depth: int) -> list[Recipe]:
    """Lists the three initializations at one level."""
    level = "O0" if opt_level == "all" else opt_level
    return [
        Recipe(label, how, depth, level, half_dtype, epochs=20)
        for how, label in INITIALIZATIONS.items()
    ]


def compare_initializations(
    recipes: Sequence[Recipe], data: Digits, key: jax.Array, progress: Progress
) -> list[Outcome]:
    """Trains every initialization at every learning rate of its grid, from one seed."""
    outcomes = []
    for recipe in recipes:
        trainer = Trainer(recipe, data)
        runs = [
            trainer.run(key, learning_rate=rate, on_epoch=lambda r=recipe: progress(r.label))
            for rate in rates(recipe.how, recipe.depth)
        ]
        outcomes.append(Outcome(recipe.label, tuple(runs)))
    return outcomes


def epochs_in(recipes: Sequence[Recipe], deep: bool) -> int:
    """Counts the epochs of an experiment, for its progress bar."""
    return sum(r.epochs * (len(rates(r.how, r.depth)) if deep else SEEDS) for r in recipes)
