"""Explicit mode: a model applied with its forward and backward scales beside its parameters."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jinit._arithmetic import apply_scale, is_float, multiply
from jinit._trees import collection_of, leaf_paths
from jinit.empirical.explicit.scale_tree import (
    COLLECTION,
    Scales,
    entry_name,
    find_scale,
    relative_path,
)
from jinit.empirical.measuring.meshes import in_its_mesh
from jinit.empirical.user_functions import describe_call
from jinit.layers import Layer, gathered, survey
from jinit.modules.model import read_model
from jinit.modules.nnx_calls import Apart, call, on_objects, unwrapped
from jinit.modules.roles import param_mask
from jinit.tracing import EquationView, Path, Static, evaluate, partition, trace
from jinit.typing import ApplyFn

__all__ = ["NormedApply", "scale_gradient"]


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


@dataclass(frozen=True)
class Opened:
    """Calls a model with its variables in the place of its arrays.

    Attributes:
        call: Applies the model to its variables.
        graphdef: What the NNX objects among the arguments are without their states.
    """

    call: Callable[..., Any]
    graphdef: Any

    @property
    def hashable(self) -> bool:
        """Whether a jit can tell it from another."""
        try:
            hash(self)
        except TypeError:
            return False
        return True

    def __call__(self, variables: Any, inputs: Any, options: dict[str, Any]) -> Any:
        """Returns what ``jinit.modules.nnx_calls.call`` does."""
        return call(self.call, Apart((variables, *inputs), options, self.graphdef))


class NormedApply:
    """Applies a model with explicit forward and backward scales: ``apply(params, *inputs)``.

    A layer f with weight W becomes ``f(a * W, x)``; the gradient of W is multiplied by ``a * gy``
    and the one that leaves through x by ``gx * gy``.

    Args:
        apply_fn: The model: a function of its variables, or of the module.
        scales: The scales; None where the variables hold them in the collection ``normed``.
        collection: The top-level entry of the variables that holds the parameters, where it is
            not Flax's ``params``.
        parameters: The paths of the parameters, where they are not all in it.
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        scales: Scales | None = None,
        collection: str | None = None,
        parameters: Sequence[str] | None = None,
    ) -> None:
        functools.update_wrapper(self, apply_fn, updated=())
        self.apply_fn, self.scales = apply_fn, scales
        self.collection, self.parameters = collection, parameters
        self._compiled = jax.jit(self._apply, static_argnums=(0, 1))

    def __call__(self, params: Any, *inputs: Any, **options: Any) -> Any:
        """Applies the model; keyword arguments are handed on, and what NNX's objects keep is kept.

        Args:
            params: The variables, or the module that ``calibrate`` returned.
            inputs: The inputs.
            options: Keyword arguments.
        """
        return on_objects(self._run, (params, *inputs), options)

    def _run(self, apart: Apart) -> Any:
        given, *inputs = apart.args
        model = read_model(given, self.apply_fn)
        static, arrays = partition(apart.kwargs)
        opened = Opened(model.opened, apart.graphdef)
        run = self._compiled if static.hashable and opened.hashable else self._apply
        return run(opened, static, model.variables, self.scales, inputs, arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        return NormedApply, (self.apply_fn, self.scales, self.collection, self.parameters)

    def _apply(
        self,
        opened: Opened,
        static: Static,
        params: Any,
        scales: Scales | None,
        inputs: Any,
        arrays: Any,
    ) -> Any:
        if scales is None:
            params, scales = _divided(params, describe_call(self.apply_fn))
        traced = trace(
            lambda params, inputs, arrays: opened(params, inputs, static.fill(arrays)),
            params, inputs, arrays,
        )  # fmt: skip
        variables = unwrapped(params)
        collection, paths = collection_of(variables, self.collection), leaf_paths(variables)
        found = survey(traced, self._trainable(variables, paths))
        names = [relative_path(path, collection) for path in paths]
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

    def _trainable(self, params: Any, paths: Sequence[str]) -> Sequence[bool]:
        if self.parameters is None:
            return param_mask(params, collection=self.collection)
        return [path in self.parameters for path in paths]


def _divided(variables: Any, name: str) -> tuple[Any, Scales]:
    """Takes the scales out of Flax variables."""
    if not isinstance(variables, Mapping) or COLLECTION not in variables:
        raise ValueError(
            f"the variables of {name} hold no collection {COLLECTION!r}, in which "
            'calibrate(..., mode="explicit") puts the scales; pass the variables it returned'
        )
    rest = {key: value for key, value in variables.items() if key != COLLECTION}
    return rest, variables[COLLECTION]


def _scaled_leaves(
    layers: Sequence[Layer], leaves: list[Any], names: Sequence[tuple[str, ...]], scales: Scales
) -> list[Any]:
    used = {leaf for la in layers if la.measured for leaf, _ in (*la.leaves, *la.bias)}
    return [
        _scale_leaf(leaf, find_scale(scales, name, "a"), find_scale(scales, name, "gy"))
        if number in used and is_float(leaf)
        else leaf
        for number, (leaf, name) in enumerate(zip(leaves, names, strict=True))
    ]


def _uses(layers: Sequence[Layer], names: Sequence[tuple[str, ...]]) -> Iterator[Any]:
    """Names the entry of every layer that has a scale."""
    seen: Counter[int] = Counter()
    for layer in layers:
        if layer.carrier is not None:
            yield layer, names[layer.carrier], entry_name(seen[layer.carrier])
            seen[layer.carrier] += 1


def _backward_factors(
    layers: Sequence[Layer], names: Sequence[tuple[str, ...]], scales: Scales
) -> Iterator[tuple[Path, jax.Array]]:
    for layer, name, entry in _uses(layers, names):
        degree = dict(layer.leaves)[layer.carrier]
        factor = find_scale(scales, name, entry) * find_scale(scales, name, "gy")
        # a use of several slices at once has one factor
        factor = gathered(factor, degree.places)
        shape = [n if level in degree.loops else 1 for level, n in enumerate(layer.lengths)]
        yield layer.head, jnp.broadcast_to(factor.reshape(shape), layer.lengths)
