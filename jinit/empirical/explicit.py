"""Explicit mode: a model applied with its forward and backward scales beside its parameters."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jinit._arithmetic import apply_scale, is_float, multiply
from jinit._trees import collection_of, leaf_paths, param_mask
from jinit.empirical.inputs import describe_call
from jinit.empirical.meshes import in_its_mesh
from jinit.empirical.names import Naming
from jinit.layers import Layer, gathered, survey
from jinit.tracing import EquationView, Path, Static, evaluate, partition, trace

__all__ = [
    "COLLECTION",
    "NAMES",
    "NormedApply",
    "explicit_scales",
    "scale_gradient",
    "wrapped_modules",
]

COLLECTION = "normed"
"""The collection of Flax variables that holds the scales."""

NAMES = ("a", "gx", "gy")
"""The scales of a wrapped module."""

Scales = Mapping[str, Any]
"""Nested by the leaves' paths. Every leaf that takes part in a layer has ``a`` and ``gy``, of
shape () or with the leaf's axes up to the last that a scan goes along; the one that carries a
layer's scale has ``gx`` as well, and ``gx_1`` and so on for its further uses."""


@jax.custom_vjp
def _scale_leaf(leaf: jax.Array, forward: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns ``forward * leaf``; the leaf's gradient is multiplied by ``weight`` as well."""
    return apply_scale(leaf, forward)


@in_its_mesh
def _scale_leaf_backward(saved: tuple[jax.Array, jax.Array], ct: jax.Array) -> tuple[Any, ...]:
    forward, weight = saved
    return apply_scale(ct, forward * weight), jnp.zeros_like(forward), jnp.zeros_like(weight)


_scale_leaf.defvjp(
    lambda leaf, forward, weight: (apply_scale(leaf, forward), (forward, weight)),
    _scale_leaf_backward,
)


@jax.custom_vjp
def scale_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns x, whose gradient is multiplied by ``factor``."""
    return x


scale_gradient.defvjp(
    lambda x, factor: (x, factor),
    in_its_mesh(lambda factor, ct: (multiply(ct, factor), jnp.zeros_like(factor))),
)


class NormedApply:
    """Applies a model with explicit forward and backward scales: ``apply(params, *inputs)``.

    A layer f with weight W becomes ``f(a * W, x)``; the gradient of W is multiplied by ``a * gy``
    and the one that leaves through x by ``gx * gy``.

    Args:
        apply_fn: The model.
        scales: The scales; None where the variables hold them in the collection ``normed``.
    """

    def __init__(self, apply_fn: Callable[..., Any], scales: Scales | None = None) -> None:
        functools.update_wrapper(self, apply_fn, updated=())
        self.apply_fn, self.scales = apply_fn, scales
        self._compiled = jax.jit(self._apply, static_argnums=0)

    def __call__(self, params: Any, *inputs: Any, **options: Any) -> Any:
        """Applies the model; keyword arguments are handed on."""
        static, arrays = partition(options)
        run = self._compiled if static.hashable else self._apply
        return run(static, params, self.scales, inputs, arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        return NormedApply, (self.apply_fn, self.scales)

    def _apply(
        self, static: Static, params: Any, scales: Scales | None, inputs: Any, arrays: Any
    ) -> Any:
        if scales is None:
            params, scales = _divided(params, describe_call(self.apply_fn))
        traced = trace(
            lambda params, inputs, arrays: self.apply_fn(params, *inputs, **static.fill(arrays)),
            params, inputs, arrays,
        )  # fmt: skip
        collection, paths = collection_of(params), leaf_paths(params)
        found = survey(traced, param_mask(params))
        names = [_relative(path, collection) for path in paths]
        leaves = _scaled_leaves(found.layers, jax.tree.leaves(params), names, scales)
        factors = dict(_backward_factors(found.layers, names, scales))
        heads = {layer.head: layer for layer in found.layers}

        def rule(view: EquationView, values: Sequence[Any]) -> list[Any] | None:
            if view.planted is None:
                return None
            layer = heads[view.path]
            return view.bind(layer.on_inputs(values, lambda x: scale_gradient(x, view.planted)))

        args = [*leaves, *jax.tree.leaves((inputs, arrays))]
        outputs, _ = evaluate(
            traced.jaxpr, traced.consts, args, rule, planted=factors, enter=found.enter
        )
        return traced.unflatten(outputs)


def _divided(variables: Any, name: str) -> tuple[Any, Scales]:
    """Takes the scales out of Flax variables."""
    if not isinstance(variables, Mapping) or COLLECTION not in variables:
        raise ValueError(
            f"the variables of {name} hold no collection {COLLECTION!r}, in which "
            'calibrate(..., mode="explicit") puts the scales; pass the variables it returned'
        )
    rest = {key: value for key, value in variables.items() if key != COLLECTION}
    return rest, variables[COLLECTION]


def _relative(path: str, collection: str | None) -> tuple[str, ...]:
    parts = tuple(path.split("/"))
    return parts[1:] if collection is not None and parts[0] == collection else parts


def _find(scales: Scales, name: tuple[str, ...], entry: str) -> Any:
    found: Any = scales
    for part in (*name, entry):
        if not isinstance(found, Mapping) or part not in found:
            raise ValueError(
                f"the scales hold no {entry!r} for {'/'.join(name)}; calibrate this model, "
                'with mode="explicit", and pass what it returned'
            )
        found = found[part]
    return jnp.asarray(found)


def _scaled_leaves(
    layers: Sequence[Layer], leaves: list[Any], names: Sequence[tuple[str, ...]], scales: Scales
) -> list[Any]:
    used = {leaf for la in layers if la.measured for leaf, _ in (*la.leaves, *la.bias)}
    return [
        _scale_leaf(leaf, _find(scales, name, "a"), _find(scales, name, "gy"))
        if number in used and is_float(leaf)
        else leaf
        for number, (leaf, name) in enumerate(zip(leaves, names, strict=True))
    ]


def _uses(layers: Sequence[Layer], names: Sequence[tuple[str, ...]]) -> Iterator[Any]:
    """Names the entry of every layer that has a scale."""
    seen: Counter[int] = Counter()
    for layer in layers:
        if layer.carrier is not None:
            yield layer, names[layer.carrier], _entry(seen[layer.carrier])
            seen[layer.carrier] += 1


def _entry(use: int) -> str:
    return f"gx_{use}" if use else "gx"


def _backward_factors(
    layers: Sequence[Layer], names: Sequence[tuple[str, ...]], scales: Scales
) -> Iterator[tuple[Path, jax.Array]]:
    for layer, name, entry in _uses(layers, names):
        degree = dict(layer.leaves)[layer.carrier]
        factor = _find(scales, name, entry) * _find(scales, name, "gy")
        # a use of several slices at once has one factor
        factor = gathered(factor, degree.places)
        shape = [n if level in degree.loops else 1 for level, n in enumerate(layer.lengths)]
        yield layer.head, jnp.broadcast_to(factor.reshape(shape), layer.lengths)


def explicit_scales(
    naming: Naming, leaves: Mapping[str, list[Any]], backward: Any, collection: str | None
) -> dict[str, Any]:
    """Builds the scales of explicit mode from what was found.

    Args:
        naming: The layers and leaves.
        leaves: By leaf, its factors ``forward`` and ``weight``.
        backward: The factor of the gradient that leaves each layer; one a statistic.
        collection: The top-level entry that holds the parameters, or None.
    """
    names = [_relative(path, collection) for path in naming.paths]
    tree: dict[str, Any] = {}
    for leaf in naming.used:
        _put(tree, names[leaf], {"a": leaves["forward"][leaf], "gy": leaves["weight"][leaf]})
    seen: Counter[int] = Counter()
    for leaf, factor in naming.carried(backward):
        weight = leaves["weight"][leaf]
        factor = factor.reshape(factor.shape + (1,) * (weight.ndim - factor.ndim))
        _put(tree, names[leaf], {_entry(seen[leaf]): factor / weight})
        seen[leaf] += 1
    return tree


def _put(tree: dict[str, Any], name: tuple[str, ...], entries: dict[str, Any]) -> None:
    for part in name:
        tree = tree.setdefault(part, {})
    tree.update(entries)


def wrapped_modules(variables: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the path and the scales of every wrapped module among variables."""
    if isinstance(variables, Mapping) and COLLECTION in variables:
        parameters = variables.get("params", {})
        yield from _below(variables[COLLECTION], parameters, ())


def _below(scales: Any, parameters: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """A module has a subtree of parameters; in plain explicit mode a leaf has the scales."""
    if set(scales) == {*NAMES} and isinstance(parameters, Mapping):
        yield "/".join(path), dict(scales)
        return
    for name, inner in scales.items():
        if isinstance(inner, Mapping) and isinstance(parameters, Mapping):
            yield from _below(inner, parameters.get(name, {}), (*path, name))
