"""Explicit mode for models that carry their scales themselves, in modules wrapped by ``Normed``."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jinit.empirical.explicit.scale_tree import with_scales
from jinit.empirical.layer_names import LayerNames, Named
from jinit.typing import PyTree

__all__ = ["filled", "frozen_outside"]


def frozen_outside(
    modules: Sequence[str], names: LayerNames, frozen: Sequence[bool]
) -> tuple[bool, ...]:
    """Leaves out all leaves but those that carry a layer of a wrapped module, or are its bias.

    Args:
        modules: The paths of the wrapped modules; where there are none, nothing changes.
        names: The layers and leaves.
        frozen: For every leaf whether it is left out in any case.

    Raises:
        ValueError: A wrapped module holds several layers.
    """
    if not modules:
        return tuple(frozen)
    layers = [named for module in modules for named in _layers(names, module)]
    tuned = {leaf for named in layers for leaf in names.scaled(named)}
    return tuple(flag or leaf not in tuned for leaf, flag in enumerate(frozen))


def _layers(names: LayerNames, module: str) -> list[Named]:
    inside = [
        named
        for named in names.ordered
        if named.layer.carrier is not None and named.path.startswith(f"params/{module}/")
    ]
    if len(inside) > 1:
        labels = ", ".join(named.label for named in inside)
        raise ValueError(
            f"the wrapped module {module} holds several layers, {labels}, which one scale cannot "
            "bring to 1; wrap its leaf modules instead"
        )
    return inside


def filled(
    variables: PyTree,
    modules: Sequence[str],
    names: LayerNames,
    parameter_scales: list[Any],
    leaf_gradient_scales: list[Any],
    gradient_scales: Any,
) -> PyTree:
    """Returns variables whose wrapped modules have the scales that were found.

    Args:
        variables: The variables, their parameters scaled already.
        modules: The paths of the wrapped modules.
        names: The layers and leaves.
        parameter_scales: By leaf, what it is multiplied by when the model is applied.
        leaf_gradient_scales: By leaf, what its gradient is multiplied by as well.
        gradient_scales: The factor of the gradient that each layer sends back; one a statistic.
    """
    found = {}
    for module in modules:
        for named in _layers(names, module):
            first, degree = named.layer.scaled[0]
            leaf = names.leaf_at(first, named)
            gy = leaf_gradient_scales[leaf]
            back = jnp.asarray(gradient_scales[named.statistic], jnp.float32)
            a = parameter_scales[leaf] ** (degree.degree or 1.0)
            found[module] = {"a": a, "gx": back / gy, "gy": gy}
    return with_scales(variables, found)
