"""Where the numbers of every layer and of every leaf stand in two flat vectors.

A *statistic* belongs to a layer, one for each iteration of the scans around it; a *slot* to a
leaf, one for each slice of it that a scan hands in. What is computed from statistics or slots is
computed on the whole vector at once, so that the program does not grow with the number of layers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jinit._arithmetic import namespace
from jinit.empirical.measuring.factors import Factors
from jinit.layers import Degree, Layer, placed
from jinit.tracing import Path

__all__ = ["Uses", "VectorLayout"]


@dataclass(frozen=True)
class Uses:
    """Which slots which statistics concern: three arrays of one length.

    Attributes:
        slot: The slot.
        statistic: The statistic.
        degree: The degree of the layer's output in the leaf.
    """

    slot: np.ndarray
    statistic: np.ndarray
    degree: np.ndarray


@dataclass(frozen=True)
class VectorLayout:
    """The layout of both vectors.

    Attributes:
        layers: The layers whose statistics are kept.
        count: The number of leaves.
        joined: The loops that equal layers were joined to: each iteration is a layer of its own.
    """

    layers: tuple[Layer, ...]
    count: int
    joined: frozenset[Path] = frozenset()

    @cached_property
    def starts(self) -> np.ndarray:
        """Where the statistics of each layer begin; the last entry is their number."""
        sizes = [math.prod(layer.lengths) for layer in self.layers]
        return np.cumsum([0, *sizes])

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of every leaf's slots: one axis a scan that slices it."""
        shapes: list[tuple[int, ...]] = [()] * self.count
        for layer in self.layers:
            for leaf, degree in (*layer.leaves, *layer.bias):
                shape = tuple(layer.lengths[level] for level in degree.loops)
                shapes[leaf] = max(shapes[leaf], shape, key=len)
        return tuple(shapes)

    @cached_property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """The axes of every leaf along which its slots lie."""
        places: list[tuple[int, ...]] = [()] * self.count
        for layer in self.layers:
            for leaf, degree in (*layer.leaves, *layer.bias):
                places[leaf] = max(places[leaf], degree.places, key=len)
        return tuple(places)

    @cached_property
    def slot_starts(self) -> np.ndarray:
        """Where the slots of each leaf begin; the last entry is their number."""
        return np.cumsum([0, *(math.prod(shape) for shape in self.shapes)])

    @property
    def size(self) -> int:
        """The number of statistics."""
        return int(self.starts[-1])

    @property
    def slots(self) -> int:
        """The number of slots."""
        return int(self.slot_starts[-1])

    def pack(self, values: Mapping[Any, jax.Array], keys: Sequence[Any]) -> jax.Array:
        """Joins the statistics of all layers, one key a layer; a missing one counts as 0."""
        parts = [
            jnp.ravel(values[key]).astype(jnp.float32)
            if key in values
            else jnp.zeros(math.prod(layer.lengths), jnp.float32)
            for layer, key in zip(self.layers, keys, strict=True)
        ]
        return jnp.concatenate([jnp.zeros(0, jnp.float32), *parts])

    def unpack(self, vector: Any, index: int) -> Any:
        """Returns one layer's statistics, with an axis for every scan around it."""
        part = vector[self.starts[index] : self.starts[index + 1]]
        return part.reshape(self.layers[index].lengths)

    def by_layer(self, factors: Factors) -> list[Factors]:
        """Divides factors among the layers, one a statistic."""
        return [
            Factors(*(self.unpack(vector, index) for vector in factors))
            for index in range(len(self.layers))
        ]

    def by_leaf(self, factors: Factors) -> list[Factors]:
        """Divides factors among the stacked leaves, one a slot."""
        return [Factors(*parts) for parts in zip(*map(self.leaves, factors), strict=True)]

    def loop_of(self, layer: Layer) -> Path | None:
        """Returns the loop that a layer was joined to, or None."""
        return next(
            (p for n in range(1, len(layer.head)) if (p := layer.head[:n]) in self.joined), None
        )

    @cached_property
    def _free_loops(self) -> list[tuple[int, ...]]:
        """By layer, the loops of the model that do not slice the leaf that carries it."""
        carried = [
            () if la.carrier is None else dict(la.leaves)[la.carrier].loops for la in self.layers
        ]
        return [
            tuple(
                level
                for level in range(self.loop_of(layer) is not None, len(layer.lengths))
                if level not in owned
            )
            for layer, owned in zip(self.layers, carried, strict=True)
        ]

    @cached_property
    def free_iterations(self) -> np.ndarray:
        """How many iterations share a layer's carrier; one number a statistic."""
        counts = [
            np.full(math.prod(layer.lengths), math.prod(layer.lengths[level] for level in free))
            for layer, free in zip(self.layers, self._free_loops, strict=True)
        ]
        return np.concatenate([np.zeros(0, np.int64), *counts])

    def over_free_loops(self, vector: Any, weights: Any) -> Any:
        """Averages statistics over the iterations that share a layer's carrier."""
        xp, parts = namespace(vector), []
        for index, free in enumerate(self._free_loops):
            part, weight = self.unpack(vector, index), self.unpack(weights, index)
            total = (part * weight).sum(free, keepdims=True)
            mean = total / xp.maximum(weight.sum(free, keepdims=True), 1)
            parts.append(xp.broadcast_to(mean, part.shape).ravel())
        return xp.concatenate([np.zeros(0, np.float32), *parts])

    def leaf(self, vector: Any, leaf: int) -> Any:
        """Returns one leaf's slots, laid along its axes."""
        part = vector[self.slot_starts[leaf] : self.slot_starts[leaf + 1]]
        return placed(part.reshape(self.shapes[leaf]), self.places[leaf])

    def leaves(self, vector: Any) -> list[Any]:
        """Returns the slots of every leaf."""
        return [self.leaf(vector, leaf) for leaf in range(self.count)]

    def uses(self, leaves: Iterable[tuple[int, int, Degree]]) -> Uses:
        """Lists the pairs of slot and statistic of layers and the leaves they use.

        Args:
            leaves: A layer's index, a leaf, and the layer's degree in it.

        Returns:
            A pair for every iteration of the layer and every slot of the slice it was handed.
        """
        pairs = [self._pairs(*use) for use in leaves]
        slots = [slot for slot, _, _ in pairs]
        statistics = [statistic for _, statistic, _ in pairs]
        degrees = [np.full(len(slot), degree, np.float32) for slot, _, degree in pairs]
        none = np.zeros(0, np.int64)
        return Uses(
            np.concatenate([none, *slots]),
            np.concatenate([none, *statistics]),
            np.concatenate([np.zeros(0, np.float32), *degrees]),
        )

    def _pairs(self, index: int, leaf: int, degree: Degree) -> tuple[np.ndarray, np.ndarray, float]:
        """Pairs the slots of a leaf with the statistics of one of its layers.

        A layer in a scan of 3 within a scan of 2 has the statistics 0 to 5, the inner iteration
        counting fastest. Of a leaf that the inner scan slices, slot j goes with j and 3 + j; of
        one that no scan slices, the one slot goes with all six.
        """
        lengths, shape = self.layers[index].lengths, self.shapes[leaf]
        statistics = np.arange(math.prod(lengths)).reshape(lengths)
        slots = np.arange(math.prod(shape)).reshape(shape)
        grid = np.unravel_index(statistics.ravel(), lengths or (1,))
        # a use of the whole leaf concerns all its slices
        chosen = slots[tuple(grid[level] for level in degree.loops)] if degree.loops else slots
        rest = math.prod(shape[len(degree.loops) :])
        count = statistics.size if degree.loops else 1
        chosen = np.broadcast_to(chosen.reshape(count, rest), (statistics.size, rest))
        repeated = np.repeat(statistics.ravel(), chosen.shape[1])
        return (
            self.slot_starts[leaf] + chosen.ravel(),
            self.starts[index] + repeated,
            degree.degree or 1.0,
        )
