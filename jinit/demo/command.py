"""The command line of the demonstration."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinit
from jinit._extras import require
from jinit._tables import printable
from jinit.demo.experiments import (
    LEVELS,
    Outcome,
    compare,
    count_epochs,
    depth_recipes,
    level_recipes,
    over_rates,
    over_seeds,
)

if TYPE_CHECKING:
    import jax

__all__ = ["main"]

SHALLOW = 8


def _depth(text: str) -> int:
    if not text.isdecimal() or int(text) < 3:
        raise argparse.ArgumentTypeError(f"{text} is not a number of layers: at least 3")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jinit demo",
        description=(
            "Trains a plain network on scikit-learn's handwritten digits through the whole "
            "library, prints what every part did and draws one figure."
        ),
    )
    parser.add_argument(
        "--opt-level", choices=[*LEVELS, "all"], default="all",
        help="the level of precision to train at, beside Flax's defaults (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--half-dtype", choices=["bfloat16", "float16"], default="bfloat16",
        help="the half dtype of O1, O2 and O3 (default: bfloat16)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="the root seed (default: 0)")
    parser.add_argument(
        "--depth", type=_depth, default=4,
        help=f"the number of layers (default: 4); above {SHALLOW}, initializations are compared "
        "over a grid of learning rates instead of levels, at O0 unless --opt-level names one",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("jinit-demo"),
        help="the folder for demo.png and demo.json (default: jinit-demo)",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration.

    Args:
        argv: The arguments; None for those of the process.

    Returns:
        The exit status: 0.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        require("demo", "sklearn", "matplotlib")
        options.out.mkdir(parents=True, exist_ok=True)
        key = jinit.startup(seed=options.seed)
    except (ModuleNotFoundError, OSError, TypeError, ValueError) as error:
        parser.error(str(error))
    print(f"{jinit.startup_report()}\n")
    outcomes = _run(options, key)
    _show(options, outcomes)
    written = f"{options.out / 'demo.png'} and {options.out / 'demo.json'}"
    print(printable(f"\nWrote {written} in {time.perf_counter() - start:.0f} s."))
    return 0


def _run(options: argparse.Namespace, key: "jax.Array") -> list[Outcome]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from jinit.demo.data import load_digits

    deep = options.depth > SHALLOW
    make, trials = (depth_recipes, over_rates(key)) if deep else (level_recipes, over_seeds(key))
    recipes = make(options.opt_level, options.half_dtype, options.depth)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(recipes[0].label, total=count_epochs(recipes, trials))
        return compare(
            recipes,
            trials,
            load_digits(),
            lambda label: bar.update(task, advance=1, description=label),
        )


def _show(options: argparse.Namespace, outcomes: list[Outcome]) -> None:
    from jinit.demo import show

    deep = options.depth > SHALLOW
    calibration = next(
        run.calibration for o in outcomes for run in o.runs if run.calibration is not None
    )
    print(show.layers_table(calibration), "\n")
    if deep:
        print(show.rates_table(outcomes))
    else:
        print(show.levels_table(outcomes))
        print(f"\n{show.overflow_story(outcomes[-1].typical)}")
    show.draw(calibration, outcomes, deep).savefig(options.out / "demo.png")
    (options.out / "demo.json").write_text(json.dumps(show.to_dict(outcomes)))
