"""Loss over learning rate, and what a rule for the depth makes of it.

A rule gives every multiplier of a calibration one more factor, its mass. So all rules share the
trainings: a training at learning rate ``r`` with multipliers m is one at ``r / mass`` with
``mass * m``.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.transfer.families import FAMILIES, Size

__all__ = ["GRID", "RULES", "Curve", "Rule", "find", "load", "rules_of", "save"]

GRID = math.sqrt(2.0)
LAST = 20  # the steps whose mean loss is a training's result


@dataclass
class Curve:
    """The trainings of one network from one initialization.

    Attributes:
        family: Its key in ``FAMILIES``.
        start: The initialization: ``flax``, ``he`` or ``jinit``.
        width: The network's width.
        depth: Its depth.
        layers: How much a unit step of all layers at once changes the output of each, the head
            last; 1 for a default.
        spread: The largest growth of a seed over the smallest.
        points: By grid index i, the results of the seeds at learning rate ``GRID**i`` with the
            multipliers ``m / growth``; None where a training diverged.
    """

    family: str
    start: str
    width: int
    depth: int
    layers: list[float] = field(default_factory=lambda: [1.0])
    spread: float = 1.0
    points: dict[int, list[float | None]] = field(default_factory=dict)

    @property
    def size(self) -> Size:
        """Width and depth."""
        return self.width, self.depth

    def loss(self, index: int) -> float:
        """The mean over seeds, inf where one diverged."""
        losses = self.points[index]
        return float(np.mean([np.inf if loss is None else loss for loss in losses]))

    @property
    def growth(self) -> float:
        """The geometric mean over layers of how much a unit step changes their outputs."""
        return float(np.exp(np.mean(np.log(self.layers))))

    @property
    def indices(self) -> list[int]:
        """The grid indices that were tried, in order."""
        return sorted(self.points)

    @property
    def best(self) -> int:
        """The grid index of least loss."""
        return min(self.indices, key=self.loss)

    @property
    def trained(self) -> bool:
        """Whether any learning rate does better than a guess at the most frequent answer."""
        return self.loss(self.best) < 0.98 * FAMILIES[self.family].guess

    @property
    def vertex(self) -> float:
        """The vertex of a parabola through the log losses within a factor of two of the best.

        As an index. Single points are noisy: on the digits an image that is hard to fit, seen in
        the last steps or not, moves a result by a quarter.
        """
        near = [i for i in self.indices if abs(i - self.best) <= 2 and math.isfinite(self.loss(i))]
        if len(near) < 3:
            return float(self.best)
        square, slope, _ = np.polyfit(near, [math.log(self.loss(i)) for i in near], 2)
        inside = (min(near), max(near))
        return float(np.clip(-slope / (2 * square), *inside)) if square > 0 else float(self.best)


@dataclass(frozen=True)
class Rule:
    """A default, or a calibration with a mass.

    Attributes:
        label: What tables call it.
        start: The initialization.
        mass: The factor of all multipliers.
    """

    label: str
    start: str
    mass: Callable[[Curve], float] = lambda curve: 1.0

    def shift(self, curve: Curve) -> float:
        """Returns what a learning rate of the rule is divided by on the curve's grid, as indices.

        The grid's own multipliers are ``m / growth``.
        """
        return math.log(1.0 / (self.mass(curve) * curve.growth), GRID)

    def best_rate(self, curve: Curve) -> float:
        """Returns the learning rate of least loss, in the rule's own units."""
        return GRID ** (curve.vertex + self.shift(curve))

    def index(self, curve: Curve, rate: float) -> int:
        """Returns the index of the curve that is nearest to a learning rate of the rule."""
        return round(math.log(rate, GRID) - self.shift(curve))


RULES = (
    Rule("Flax", "flax"),
    Rule("He", "he"),
    Rule("m", "jinit"),
    Rule("m / √L", "jinit", lambda curve: curve.depth**-0.5),
    Rule("m / L", "jinit", lambda curve: 1.0 / curve.depth),
    Rule("m / growth", "jinit", lambda curve: 1.0 / curve.growth),
    Rule("m / growth of the head", "jinit", lambda curve: 1.0 / curve.layers[-1]),
)


def rules_of(family: str) -> list[Rule]:
    """Lists the rules that a family is trained with."""
    starts = (*FAMILIES[family].defaults, "jinit")
    return [rule for rule in RULES if rule.start in starts]


def load(path: Path) -> list[Curve]:
    """Reads the curves, none where there is no file yet."""
    if not path.exists():
        return []
    curves = [Curve(**entry) for entry in json.loads(path.read_text())["curves"]]
    for curve in curves:
        curve.points = {int(index): losses for index, losses in curve.points.items()}
    return curves


def save(path: Path, curves: Iterable[Curve], **about: Any) -> None:
    """Writes the curves, a line each."""
    lines = ",\n".join(json.dumps(asdict(curve), default=float) for curve in curves)
    path.write_text(f'{{"about": {json.dumps(about)},\n"curves": [\n{lines}\n]}}\n')


def find(curves: Sequence[Curve], family: str, start: str, size: Size) -> Curve | None:
    """Returns the curve of one network and initialization."""
    wanted = (family, start, size)
    return next((c for c in curves if (c.family, c.start, c.size) == wanted), None)
