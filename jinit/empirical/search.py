"""The search for one scale a leaf, from forward passes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jinit.empirical.measure import inverse_rms
from jinit.empirical.scales import LeafScales, leaf_scales, shared_factors
from jinit.empirical.sites import Layer
from jinit.tracing import Path

__all__ = ["Measure", "find_scales"]

SWEEPS = 6  # rounds of the fixed point for a leaf that several uses share

Measure = Callable[[Mapping[Path, jax.Array]], Mapping[Path, jax.Array]]
"""Takes the factors of shared layers by tail, 0 for a layer's own; returns every layer's mean
square before its factor, with a leading axis of keys."""


class _Search(NamedTuple):
    """Where the fixed point stands, in logarithms, one array a leaf.

    Attributes:
        scale: The scales.
        previous: Those of the round before.
        residual: What the round before wanted to add to them.
    """

    scale: LeafScales
    previous: LeafScales
    residual: LeafScales


def find_scales(layers: Sequence[Layer], count: int, measure: Measure) -> LeafScales:
    """Finds the scales at which every layer puts out RMS 1.

    A leaf with one use takes what a single sweep measures. One with N uses, be they layers or
    iterations of a loop, takes the geometric mean u of what they want, which depends on u, since
    each use scales the input of the next: along a chain the wish falls by (N - 1) / 2 for each
    unit that u rises. So u moves by a secant step of between 2 / (N + 1), which is right for a
    chain, and 1. The first sweep, in which every use is brought to 1 by itself, is the start.

    Args:
        layers: The layers.
        count: The number of leaves.
        measure: Runs the model forward; called once in the program, and looped over.

    Returns:
        One scale a leaf.
    """
    index = {layer.tail: i for i, layer in enumerate(layers)}
    least = [2.0 / (n + 1.0) for n in _uses(layers, count)]
    scaled = [layer for layer in layers if layer.carrier is not None]
    blank = {layer.tail: jnp.ones((1, *layer.lengths), jnp.float32) for layer in scaled}
    shapes = jax.eval_shape(lambda: _averaged(layers, blank, index, count))
    zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]

    def sweep(state: _Search, number: jax.Array) -> tuple[_Search, None]:
        factors = shared_factors(layers, [jnp.exp(u) for u in state.scale])
        given = {path: jnp.where(number == 0, 0.0, factor) for path, factor in factors.items()}
        wanted = _averaged(layers, measure(given), index, count)
        residual = [w - u for w, u in zip(wanted, state.scale, strict=True)]
        parts = zip(state.scale, state.previous, residual, state.residual, least, strict=True)
        moved = [_step(number, *part) for part in parts]
        return _Search(moved, state.scale, residual), None

    rounds = SWEEPS if any(layer.shared for layer in layers) else 1
    found, _ = jax.lax.scan(sweep, _Search(zeros, zeros, zeros), jnp.arange(rounds))
    return [jnp.exp(u) for u in found.scale]


def _step(
    number: jax.Array,
    scale: jax.Array,
    previous: jax.Array,
    residual: jax.Array,
    before: jax.Array,
    least: float,
) -> jax.Array:
    change = residual - before
    known = (number > 1) & (change != 0)
    secant = (previous - scale) / jnp.where(known, change, 1.0)
    length = jnp.where(known, jnp.clip(secant, least, 1.0), least)
    return scale + jnp.where(number == 0, 1.0, length) * residual


def _uses(layers: Sequence[Layer], count: int) -> list[int]:
    """Counts how often each slice of a leaf is applied; 1 for a leaf that never is."""
    totals = [0] * count
    for layer in layers:
        for leaf, degree in layer.scaled:
            repeats = (n for i, n in enumerate(layer.lengths) if i not in degree.loops)
            totals[leaf] += math.prod(repeats)
    return [max(total, 1) for total in totals]


def _averaged(
    layers: Sequence[Layer], powers: Mapping[Path, jax.Array], index: Mapping[Path, int], count: int
) -> LeafScales:
    """Averages logarithms over keys, leaving out those on which a layer put out nothing."""
    factors = {}
    for path, power in powers.items():
        live = ((power > 0) & jnp.isfinite(power)).astype(jnp.float32)
        weight = jnp.sum(live, 0)
        total = jnp.sum(jnp.log(inverse_rms(power)) * live, 0)
        factors[index[path]] = (total / jnp.maximum(weight, 1.0), jnp.minimum(weight, 1.0))
    return leaf_scales(layers, factors, count)
