"""From statistics of layers to one scale, and one learning-rate multiplier, a slot of a leaf.

All of it is arithmetic on two short vectors: with NumPy on the host, or with jax.numpy where the
statistics are traced.
"""

from typing import Any

import numpy as np

from jinit._arithmetic import namespace, segment_sum
from jinit.empirical.measuring.factors import Factors
from jinit.empirical.measuring.vector_layout import Uses, VectorLayout

__all__ = ["Solver", "log_mean"]


def log_mean(size: Any) -> tuple[Any, Any]:
    """Averages the logarithm of an RMS over keys.

    Args:
        size: RMS of shape (keys, statistics).

    Returns:
        The logarithm of the geometric mean of the RMS over the keys on which there was one, and
        a weight: 0 where there was none.
    """
    xp = namespace(size)
    live = (size > 0) & xp.isfinite(size)
    logs = xp.log(xp.where(live, size, 1.0))
    number = live.sum(0).astype(logs.dtype)
    return logs.sum(0) / xp.maximum(number, 1), xp.minimum(number, 1)


class Solver:
    """What the statistics of layers mean for the slots of their leaves.

    Args:
        layout: Where they stand.
        frozen: The slots that are left as they are.

    Attributes:
        scaled: Which slots take the scale of which statistics.
        moved: Which slots' steps change which statistics' outputs.
        carried: Which slot carries which statistic.
        carries: Of every statistic whether some leaf carries its layer's scale.
        tuned: Of every statistic whether its layer is rescaled.
        own: A factor a statistic: left to the layer's own, or 1 if it is not tuned.
        shared: Of every statistic whether the leaf that carries it serves other uses as well.
    """

    def __init__(self, layout: VectorLayout, frozen: np.ndarray) -> None:
        self.layout, self.frozen = layout, frozen
        indexed = list(enumerate(layout.layers))
        self.scaled = layout.uses((i, leaf, d) for i, la in indexed for leaf, d in la.scaled)
        self.moved = layout.uses(
            (i, leaf, d) for i, la in indexed for leaf, d in (*la.leaves, *la.bias)
        )
        self.carried = layout.uses((i, *la.scaled[0]) for i, la in indexed if la.scaled)
        self.carries = np.zeros(layout.size, bool)
        self.carries[self.scaled.statistic] = True
        self.tuned = self.carries.copy()
        self.tuned[self.scaled.statistic[frozen[self.scaled.slot]]] = False
        self.own = Factors.left_open(self.tuned)
        flags = [np.full(layer.lengths, layer.shared).ravel() for layer in layout.layers]
        self.shared = np.concatenate([np.zeros(0, bool), *flags]) & self.tuned

    def _mean(self, uses: Uses, values: Any, weights: Any) -> Any:
        weights = weights[uses.statistic]
        total = segment_sum(values * weights, uses.slot, self.layout.slots)
        weight = segment_sum(weights, uses.slot, self.layout.slots)
        return total / namespace(weight).maximum(weight, 1)

    def scales(self, log_factors: Any, weights: Any) -> Any:
        """Turns the factor that each layer's output needs into one scale a slot.

        A leaf of degree d takes ``factor ** (1 / d)``; one that serves several layers, or several
        iterations of a loop, takes the geometric mean of what they need.

        Args:
            log_factors: The logarithms of the factors, one a statistic.
            weights: 0 where a layer produced nothing.

        Returns:
            The logarithms of the scales; 0 for a leaf that no layer rescales.
        """
        uses = self.scaled
        values = log_factors[uses.statistic] / uses.degree
        return self._mean(uses, values, weights * self.tuned.astype(np.float32))

    def factors(self, log_scales: Any) -> Any:
        """Returns the factor that the carriers' scales give every layer's output."""
        uses, xp = self.carried, namespace(log_scales)
        logs = segment_sum(log_scales[uses.slot] * uses.degree, uses.statistic, self.layout.size)
        number = np.bincount(uses.statistic, minlength=self.layout.size)
        return xp.exp(logs / np.maximum(number, 1).astype(np.float32))

    def multipliers(self, log_updates: Any, moved: Any, null: Any) -> Any:
        """Returns the learning-rate multipliers that make every layer's update O(1).

        A layer's multiplier is ``1 / rms(dy)``, dy being the change in its output along the unit
        steps of all its parameters; they share it, as they share the layer's scale. A leaf that
        serves several layers takes the geometric mean of what they need.

        Args:
            log_updates: The logarithm of the RMS of dy, one a statistic.
            moved: 0 where there is none.
            null: Of every slot whether its gradient is rounding.

        Returns:
            One a slot; 1 for a leaf whose step changes nothing, or whose layers' gradients are
            all rounding: they vanish in exact arithmetic.
        """
        xp, uses = namespace(log_updates, null), self.moved
        true = 1.0 - xp.asarray(null)[uses.slot]
        moves = moved * (segment_sum(true, uses.statistic, self.layout.size) > 0)
        mean = self._mean(uses, log_updates[uses.statistic], moves)
        return xp.where(self.frozen, 1.0, xp.exp(-mean))
