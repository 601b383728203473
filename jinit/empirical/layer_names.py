"""What layers and leaves are called, once equal layers have been stacked into one loop."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jinit.empirical.measuring.vector_layout import VectorLayout
from jinit.empirical.targets import LayerInfo
from jinit.layers import Degree, Layer, placed
from jinit.tracing import Path

__all__ = ["LayerNames", "Named"]


@dataclass(frozen=True)
class Named:
    """One layer, or one iteration of a layer that stands in a loop.

    Attributes:
        layer: The layer.
        statistic: Where its numbers stand.
        path: The path of the leaf that carries its scale, or of its first one.
        index: Its iteration of the loops that the model has.
        iteration: Its iteration of the loop that equal layers were joined to.
    """

    layer: Layer
    statistic: int
    path: str
    index: tuple[int, ...]
    iteration: int

    @property
    def label(self) -> str:
        """Its name in a report: the path, and the iterations in brackets."""
        return self.path + "".join(f"[{i}]" for i in self.index)


@dataclass(frozen=True)
class LayerNames:
    """The names of a model's layers and leaves.

    Attributes:
        paths: The path of every leaf of the variables.
        groups: By stacked leaf the leaves that were stacked in it.
        layout: Where the numbers stand.
    """

    paths: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    layout: VectorLayout

    def slots_of(self, flags: Sequence[bool]) -> np.ndarray:
        """Spreads a flag a leaf over its slots."""
        spread = [
            np.repeat([flags[leaf] for leaf in group], slots // len(group))
            if slots >= len(group)
            else np.array([any(flags[leaf] for leaf in group)])
            for group, slots in zip(self.groups, np.diff(self.layout.slot_starts), strict=True)
        ]
        return np.concatenate([np.zeros(0, bool), *spread]).astype(bool)

    def layer_path(self, layer: Layer, iteration: int = 0) -> str:
        """Returns the path of the leaf that carries a layer's scale, or of its first one."""
        return self.paths[self._member(layer.leaf, iteration)] or "."

    def _member(self, leaf: int, iteration: int) -> int:
        group = self.groups[leaf]
        return group[iteration if len(group) > 1 else 0]

    def leaf_at(self, leaf: int, named: "Named") -> int:
        """Returns the leaf of the variables that a layer has in the place of a stacked one."""
        return self._member(leaf, named.iteration)

    def scaled(self, named: "Named") -> list[int]:
        """Returns the leaves of the variables that take a layer's scale."""
        return [x for leaf, d in named.layer.scaled for x in self._members(leaf, d, named)]

    def joined(self, named: "Named") -> list[int]:
        """Returns the weights that take one scale with the one that carries a layer's."""
        weights = {named.layer.carrier, *named.layer.joined}
        members = [
            x
            for leaf, d in named.layer.scaled
            if leaf in weights
            for x in self._members(leaf, d, named)
        ]
        return sorted({*members} - {self.leaf_at(named.layer.leaf, named)})

    def joined_paths(self, named: "Named") -> tuple[str, ...]:
        """Returns the paths of those weights."""
        return tuple(self.paths[leaf] for leaf in self.joined(named))

    def _members(self, leaf: int, degree: Degree, named: "Named") -> tuple[int, ...]:
        """Lists the leaves that were stacked in one, where a scale serves all its slices."""
        return (self.leaf_at(leaf, named),) if degree.loops else self.groups[leaf]

    @functools.cached_property
    def ordered(self) -> tuple[Named, ...]:
        """Every layer and iteration, in the order of evaluation."""
        numbered = enumerate(self.layout.layers)
        joined = itertools.groupby(numbered, lambda pair: self.layout.loop_of(pair[1]))
        return tuple(named for loop, layers in joined for named in self._block(loop, list(layers)))

    @property
    def used(self) -> list[int]:
        """The leaves of the variables that take part in a layer."""
        stacked = {leaf for la in self.layout.layers for leaf, _ in (*la.leaves, *la.bias)}
        return sorted(leaf for number in stacked for leaf in self.groups[number])

    def carried(self, vector: Any) -> Iterator[tuple[int, Any]]:
        """Divides statistics among the leaves that carry layers, use by use in order.

        Yields:
            A leaf of the variables, and the entry of one of its uses for each of its slots: of
            the loops that do not slice the leaf, the first iteration's.
        """
        for named in self.ordered:
            layer = named.layer
            if layer.carrier is None or any(named.index):
                continue
            degree = dict(layer.leaves)[layer.carrier]
            loops = degree.loops
            number = self.layout.layers.index(layer)
            start, end = self.layout.starts[number : number + 2]
            values = vector[start:end].reshape(layer.lengths)
            place = np.unravel_index(named.statistic - start, layer.lengths)
            inner = range(len(layer.lengths) - len(named.index), len(layer.lengths))
            index = [
                slice(None) if i in inner and i in loops else place[i] for i in range(len(place))
            ]
            stacked = 0 in loops and 0 not in inner  # by a new axis in front
            pairs = zip(loops, degree.places, strict=True)
            places = [axis - stacked for level, axis in pairs if level in inner]
            chosen = placed(values[tuple(index)], places)
            yield self._member(layer.carrier, named.iteration), chosen

    def _block(self, loop: Path | None, layers: list[tuple[int, Layer]]) -> Iterator[Named]:
        if loop is None:
            for number, layer in layers:
                for index in np.ndindex(*layer.lengths):
                    yield self._named(number, layer, index, index)
            return
        for iteration in range(layers[0][1].lengths[0]):
            for number, layer in layers:
                for rest in np.ndindex(*layer.lengths[1:]):
                    yield self._named(number, layer, (iteration, *rest), rest)

    def _named(
        self, number: int, layer: Layer, index: tuple[int, ...], shown: tuple[int, ...]
    ) -> Named:
        place = int(np.ravel_multi_index(index, layer.lengths)) if index else 0
        statistic = int(self.layout.starts[number]) + place
        iteration = index[0] if len(shown) < len(index) else 0
        path = self.layer_path(layer, iteration)
        return Named(layer, statistic, path, shown, iteration)

    def infos(self, tuned: np.ndarray) -> Iterator[tuple[LayerInfo, int]]:
        """Describes every layer that is tuned, with the place of its statistic."""
        chosen = [named for named in self.ordered if tuned[named.statistic]]
        for number, named in enumerate(chosen):
            layer = named.layer
            yield (
                LayerInfo(
                    named.path, layer.kind, layer.shape.fan_in, layer.shape.fan_out, named.index,
                    number, len(chosen),
                ),
                named.statistic,
            )  # fmt: skip
