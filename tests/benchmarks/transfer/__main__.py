"""Learning-rate transfer: ``python -m tests.benchmarks.transfer [FAMILY ...] [--plot]``.

Trains networks of several widths and depths with Adam at learning rates a factor of sqrt(2)
apart, five seeds each, from Flax's and He's initialization and from ``jinit.calibrate``; prints
tables, and draws ``notebooks/transfer.png``. Every network is saved to ``notebooks/transfer.json``
when it is done, and one that is there is not trained again: delete the file to start afresh. All
of it is about 50 minutes' work for one core (the MLP 20, the residual MLP 10, the transformer
20); a family by its name does a part, and ``--plot`` only draws and prints what is saved.
"""

import argparse
import platform
import time
from pathlib import Path

import jax

from tests.benchmarks.transfer.curves import GRID, Curve, find, load, rules_of, save
from tests.benchmarks.transfer.families import FAMILIES
from tests.benchmarks.transfer.report import draw, tables
from tests.benchmarks.transfer.training import Trainer

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"
DATA, FIGURE = NOTEBOOKS / "transfer.json", NOTEBOOKS / "transfer.png"
FIRST = {"flax": -14, "he": -14, "jinit": -2}  # where the search in the smallest network starts


def next_point(curve: Curve, smallest: Curve) -> int | None:
    """Returns the grid index to try next, or None where the curve is complete.

    First come the learning rates that are best for the smallest network, by each rule; then
    every second point until the best has neighbours on both sides, as far as the family asks
    for; then the best's direct neighbours.
    """
    rules = [rule for rule in rules_of(curve.family) if rule.start == curve.start]
    wanted = [rule.index(curve, rule.best_rate(smallest)) for rule in rules if smallest.points]
    missing = [index for index in wanted if index not in curve.points]
    if missing or not curve.points:
        return min(missing, default=FIRST[curve.start])
    reach = FAMILIES[curve.family].reach
    distances = [sign * 2 * i for i in range(1, reach + 1) for sign in (-1, 1)]
    near = (curve.best + distance for distance in (*distances, -1, 1))
    return next((index for index in near if index not in curve.points), None)


def complete(curve: Curve, smallest: Curve) -> bool:
    """Trains what a curve lacks; tells whether it lacked anything."""
    if next_point(curve, smallest) is None:
        return False
    trainer = Trainer(FAMILIES[curve.family], curve.start, curve.size)
    curve.layers = [float(f"{value:.4g}") for value in trainer.layers]
    curve.spread = round(trainer.spread, 4)
    while (index := next_point(curve, smallest)) is not None:
        curve.points[index] = trainer.losses(GRID**index / curve.growth)
    return True


def run(family: str, curves: list[Curve]) -> None:
    """Trains what is not there yet of a family, and saves after each network."""
    sizes = FAMILIES[family].sizes
    for start in (*FAMILIES[family].defaults, "jinit"):
        for size in sizes:
            curve = find(curves, family, start, size)
            if curve is None:
                curve = Curve(family, start, *size)
                curves.append(curve)
            if complete(curve, find(curves, family, start, sizes[0]) or curve):
                save(DATA, curves, python=platform.python_version(), jax=jax.__version__)
                best = curve.loss(curve.best)
                done = f"{len(curve.points)} points, {time.process_time():.0f} s of CPU time"
                print(f"{family} {start} {size}: loss {best:.4g}, {done}", flush=True)


def main() -> None:
    """Trains, prints the tables and draws the figure."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.transfer")
    parser.add_argument(
        "family", nargs="*", choices=[[], *FAMILIES], help="all where none is named"
    )
    parser.add_argument("--plot", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    curves = load(DATA)
    for family in [] if arguments.plot else arguments.family or FAMILIES:
        run(family, curves)
    print(tables(curves))
    draw(curves).savefig(FIGURE)


if __name__ == "__main__":
    main()
