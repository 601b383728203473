"""The two experiments: levels of precision at a small depth, initializations at a great one."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import jax

from jinit.demo.data import Digits
from jinit.demo.model import INITIALIZATIONS, Initialization
from jinit.demo.training import Recipe, Run, Trainer
from jinit.typing import OptLevel

__all__ = [
    "LEVELS",
    "Outcome",
    "compare",
    "count_epochs",
    "depth_recipes",
    "level_recipes",
    "over_rates",
    "over_seeds",
    "rates",
]

SEEDS = 3
FLAX_RATE = 4e-3  # Adam's best of 1e-3, 4e-3 and 1.6e-2 on this network
LEVELS: tuple[OptLevel, ...] = ("O0", "O1", "O2", "O3")
TOO_HIGH = 2.0**24

Progress = Callable[[str], None]
"""Called with a run's label after each of its epochs."""

Trials = Callable[[Recipe], list[tuple[jax.Array, float]]]
"""The keys and learning rates that a recipe is tried at."""


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


def level_recipes(
    opt_level: OptLevel | Literal["all"], half_dtype: str, depth: int
) -> list[Recipe]:
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


def rates(how: Initialization, depth: int) -> list[float]:
    """Returns five learning rates, each twice the one before; jinit's fall with the depth."""
    middle = 0.5 / depth if how == "jinit" else 5e-4
    return [middle * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]


def depth_recipes(
    opt_level: OptLevel | Literal["all"], half_dtype: str, depth: int
) -> list[Recipe]:
    """Lists the three initializations at one level."""
    level = "O0" if opt_level == "all" else opt_level
    return [
        Recipe(label, how, depth, level, half_dtype, epochs=20)
        for how, label in INITIALIZATIONS.items()
    ]


def over_seeds(key: jax.Array) -> Trials:
    """Tries a recipe from three seeds, the same three for all."""
    keys = [jax.random.fold_in(key, seed) for seed in range(SEEDS)]
    return lambda recipe: [(seed_key, recipe.learning_rate) for seed_key in keys]


def over_rates(key: jax.Array) -> Trials:
    """Tries a recipe at every learning rate of its grid, from one seed."""
    return lambda recipe: [(key, rate) for rate in rates(recipe.how, recipe.depth)]


def count_epochs(recipes: Sequence[Recipe], trials: Trials) -> int:
    """Counts the epochs of an experiment, for its progress bar."""
    return sum(recipe.epochs * len(trials(recipe)) for recipe in recipes)


def compare(
    recipes: Sequence[Recipe], trials: Trials, data: Digits, progress: Progress
) -> list[Outcome]:
    """Trains every recipe at all of its trials."""
    outcomes = []
    for recipe in recipes:
        trainer = Trainer(recipe, data)
        on_epoch = functools.partial(progress, recipe.label)
        runs = [
            trainer.run(key, learning_rate=rate, on_epoch=on_epoch) for key, rate in trials(recipe)
        ]
        outcomes.append(Outcome(recipe.label, tuple(runs)))
    return outcomes
