"""The scales of explicit mode as a tree: nested by the leaves' paths, beside the parameters.

Every leaf that takes part in a layer has ``a``, its parameter scale, and ``gy``, what its gradient
is multiplied by as well, of shape () or with the leaf's axes up to the last that a scan goes along;
the one that carries a layer's scale has ``gx``, its gradient scale, as well, and ``gx_1`` and so on
for its further uses::

    {"Dense_0": {"kernel": {"a": 1.4, "gy": 1.0, "gx": 0.7}, "bias": {"a": 1.4, "gy": 1.0}}}
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from jinit.empirical.layer_names import LayerNames
from jinit.typing import PyTree

__all__ = [
    "COLLECTION",
    "NAMES",
    "Scales",
    "entry_name",
    "explicit_scales",
    "find_scale",
    "relative_path",
    "unscaled",
    "with_scales",
    "wrapped_modules",
]

COLLECTION = "normed"
"""The collection of Flax variables that holds the scales."""

NAMES = ("a", "gx", "gy")
"""The scales of a wrapped module."""

Scales = Mapping[str, Any]


def relative_path(path: str, collection: str | None) -> tuple[str, ...]:
    """Returns a leaf's path below the collection of the parameters."""
    parts = tuple(path.split("/"))
    return parts[1:] if collection is not None and parts[0] == collection else parts


def entry_name(use: int) -> str:
    """Names the gradient scale of one use of a leaf."""
    return f"gx_{use}" if use else "gx"


def find_scale(scales: Scales, name: tuple[str, ...], entry: str) -> Any:
    """Returns one scale of a leaf.

    Raises:
        ValueError: The tree does not have it.
    """
    found: Any = scales
    for part in (*name, entry):
        if not isinstance(found, Mapping) or part not in found:
            raise ValueError(
                f"the scales hold no {entry!r} for {'/'.join(name)}; calibrate this model, "
                'with mode="explicit", and pass what it returned'
            )
        found = found[part]
    return jnp.asarray(found)


def explicit_scales(
    names: LayerNames,
    parameter_scales: list[Any],
    leaf_gradient_scales: list[Any],
    gradient_scales: Any,
    collection: str | None,
) -> dict[str, Any]:
    """Builds the tree from what was found.

    Args:
        names: The layers and leaves.
        parameter_scales: By leaf, what it is multiplied by when the model is applied.
        leaf_gradient_scales: By leaf, what its gradient is multiplied by as well.
        gradient_scales: The factor of the gradient that each layer sends back; one a statistic.
        collection: The top-level entry that holds the parameters, or None.
    """
    from flax.traverse_util import unflatten_dict  # Flax is imported where explicit mode is used

    paths = [relative_path(path, collection) for path in names.paths]
    flat: dict[tuple[str, ...], Any] = {}
    for leaf in names.used:
        flat[*paths[leaf], "a"] = parameter_scales[leaf]
        flat[*paths[leaf], "gy"] = leaf_gradient_scales[leaf]
    uses: Counter[int] = Counter()
    for leaf, factor in names.carried(gradient_scales):
        weight = leaf_gradient_scales[leaf]
        factor = factor.reshape(factor.shape + (1,) * (weight.ndim - factor.ndim))
        flat[*paths[leaf], entry_name(uses[leaf])] = factor / weight
        uses[leaf] += 1
    return unflatten_dict(flat)


def wrapped_modules(variables: PyTree) -> dict[str, dict[str, Any]]:
    """Returns the scales of every wrapped module among variables, by its path.

    A module has a subtree of parameters; in plain explicit mode a leaf has the scales.
    """
    if not isinstance(variables, Mapping) or COLLECTION not in variables:
        return {}
    return dict(_below(variables[COLLECTION], variables.get("params", {}), ()))


def _below(scales: Any, parameters: Any, path: tuple[str, ...]) -> Iterator[Any]:
    if set(scales) == {*NAMES} and isinstance(parameters, Mapping):
        yield "/".join(path), dict(scales)
        return
    for name, inner in scales.items():
        if isinstance(inner, Mapping) and isinstance(parameters, Mapping):
            yield from _below(inner, parameters.get(name, {}), (*path, name))


def with_scales(variables: PyTree, modules: Mapping[str, Mapping[str, Any]]) -> PyTree:
    """Returns variables whose wrapped modules have other scales."""
    if not modules:
        return variables
    from flax.traverse_util import flatten_dict, unflatten_dict

    flat = flatten_dict(variables[COLLECTION], keep_empty_nodes=True)
    for module, scales in modules.items():
        path = tuple(part for part in module.split("/") if part)
        flat.update({(*path, name): value for name, value in scales.items()})
    return {**variables, COLLECTION: unflatten_dict(flat)}


def unscaled(variables: PyTree, modules: Iterable[str]) -> PyTree:
    """Returns variables whose wrapped modules have all their scales at 1."""
    ones = {name: jnp.ones((), jnp.float32) for name in NAMES}
    return with_scales(variables, dict.fromkeys(modules, ones))
