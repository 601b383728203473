"""From statistics of layers to one scale, and one learning-rate multiplier, a leaf."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from jinit.empirical.measure import wider
from jinit.empirical.sites import Layer

__all__ = ["LeafScales", "apply_scale", "leaf_scales", "multipliers", "shared_factors"]

LeafScales = list[jax.Array]
"""One array a leaf: of shape (), or with one axis for every scan over the leaf's own axes."""

_TINY = 1e-30
_ROUNDING = 1e-12  # of a mean square: a change of 1e-6 of the largest


def apply_scale(leaf: jax.Array, scale: jax.Array) -> jax.Array:
    """Multiplies a leaf, layer by layer along its leading axes, in float32 or wider."""
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    wide = wider(leaf.dtype)
    scale = scale.reshape(scale.shape + (1,) * (leaf.ndim - scale.ndim))
    return (leaf.astype(wide) * scale.astype(wide)).astype(leaf.dtype)


def _onto_leaf(values: jax.Array, loops: tuple[int, ...]) -> jax.Array:
    """Sums a statistic over the scans that do not slice the leaf."""
    return jnp.sum(values, axis=tuple(i for i in range(values.ndim) if i not in loops))


def _onto_layer(values: jax.Array, loops: tuple[int, ...], lengths: tuple[int, ...]) -> jax.Array:
    """Repeats a leaf's value over the scans that do not slice it."""
    shape = tuple(n if i in loops else 1 for i, n in enumerate(lengths))
    return jnp.broadcast_to(values.reshape(shape), lengths)


class _Mean:
    """A mean a leaf over all the uses that reach it."""

    def __init__(self, count: int) -> None:
        self.totals: list[jax.Array] = [jnp.zeros((), jnp.float32) for _ in range(count)]
        self.weights: list[jax.Array] = [jnp.zeros((), jnp.float32) for _ in range(count)]

    def add(self, leaf: int, values: jax.Array, weights: jax.Array, loops: tuple[int, ...]) -> None:
        self.totals[leaf] = self.totals[leaf] + _onto_leaf(values * weights, loops)
        self.weights[leaf] = self.weights[leaf] + _onto_leaf(weights, loops)

    def result(self) -> list[jax.Array]:
        pairs = zip(self.totals, self.weights, strict=True)
        return [total / jnp.maximum(weight, _TINY) for total, weight in pairs]


def leaf_scales(
    layers: Sequence[Layer], log_factors: Mapping[int, tuple[jax.Array, jax.Array]], count: int
) -> LeafScales:
    """Turns the factor each layer's output needs into the logarithm of one scale a leaf.

    A leaf of degree d takes ``factor ** (1 / d)``; one that serves several layers, or several
    iterations of a loop, takes the geometric mean of what they need.

    Args:
        layers: The layers.
        log_factors: By the layer's index, the logarithm of its factor and a weight that is 0
            where the layer put out nothing.
        count: The number of leaves.

    Returns:
        The logarithms; 0 for a leaf that no layer rescales.
    """
    mean = _Mean(count)
    for index, (log_factor, weight) in log_factors.items():
        for leaf, degree in layers[index].scaled:
            mean.add(leaf, log_factor / (degree.degree or 1.0), weight, degree.loops)
    return mean.result()


def shared_factors(layers: Sequence[Layer], scales: LeafScales) -> dict[tuple[int, ...], jax.Array]:
    """Returns the factor that its shared carrier's scale gives a layer's output, by tail."""
    factors = {}
    for layer in layers:
        if layer.shared and layer.carrier is not None:
            degree = dict(layer.leaves)[layer.carrier]
            factor = scales[layer.carrier] ** (degree.degree or 1.0)
            factors[layer.tail] = _onto_layer(factor, degree.loops, layer.lengths)
    return factors


def multipliers(
    layers: Sequence[Layer], updates: Mapping[int, jax.Array], count: int
) -> LeafScales:
    """Returns the learning-rate multipliers that make every layer's update O(1).

    A layer's multiplier is ``1 / rms(dy)``, dy being the change in its output along the unit
    steps of all its parameters; they share it, as they share the layer's scale. A leaf that
    serves several layers takes the root of their mean square.

    Args:
        layers: The layers.
        updates: By the layer's index, the mean square of dy.
        count: The number of leaves.

    Returns:
        The multipliers; 1 for a leaf whose step changes nothing, or so little beside that of
        other layers that it is rounding: a gradient that vanishes in exact arithmetic.
    """
    mean = _Mean(count)
    finite = [jnp.where(jnp.isfinite(update), update, 0.0) for update in updates.values()]
    sizes = [jnp.zeros((), jnp.float32), *(jnp.max(update, initial=0.0) for update in finite)]
    largest = jnp.max(jnp.stack(sizes))
    for index, update in updates.items():
        moves = (update > jnp.maximum(_TINY, _ROUNDING * largest)) & jnp.isfinite(update)
        layer = layers[index]
        for leaf, degree in (*layer.leaves, *layer.bias):
            values = jnp.where(moves, update, 0.0)
            mean.add(leaf, values, moves.astype(jnp.float32), degree.loops)
    return [
        jnp.where(value > _TINY, jax.lax.rsqrt(jnp.maximum(value, _TINY)), 1.0)
        for value in mean.result()
    ]
