"""What can be measured of a module that exists: its values, and where they meet its input."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jinit._arithmetic import is_float
from jinit._trees import leaf_paths
from jinit.layers import survey
from jinit.modules.model import Model, read_model
from jinit.modules.roles import param_mask
from jinit.tracing import trace

__all__ = ["Values", "measure_values"]


class Values(NamedTuple):
    """What is known of a parameter by looking at it.

    Attributes:
        shape: Its shape.
        dtype: The name of its dtype.
        mean: The mean of its values; None if they are not known yet.
        std: Their standard deviation, likewise.
        fans: The fans of the layer that it is the weight of; None if that was not traced.
    """

    shape: tuple[int, ...]
    dtype: str
    mean: float | None
    std: float | None
    fans: tuple[float, float] | None


def measure_values(module: Any, inputs: tuple, kwargs: Mapping[str, Any]) -> dict[str, Values]:
    """Measures every parameter of a module, by path.

    Args:
        module: An NNX or Equinox module.
        inputs: What it is called on; empty if it is not to be traced.
        kwargs: Keyword arguments of the call.
    """
    model = read_model(module)
    leaves, paths = jax.tree.leaves(model.variables), leaf_paths(model.variables)
    trainable = param_mask(model.variables)
    fans = _fans(model, trainable, inputs, kwargs) if inputs or kwargs else {}
    return {
        path: Values(np.shape(leaf), str(leaf.dtype), *_moments(leaf), fans.get(number))
        for number, (path, leaf, flag) in enumerate(zip(paths, leaves, trainable, strict=True))
        if flag and is_float(leaf)
    }


def _moments(leaf: Any) -> tuple[float | None, float | None]:
    known = isinstance(leaf, jax.Array | np.ndarray) and not isinstance(leaf, Tracer)
    if not known or not leaf.size:
        return None, None
    values = np.asarray(leaf)
    wide = values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)
    return float(wide.real.mean()), float(wide.std())


def _fans(
    model: Model, trainable: tuple[bool, ...], inputs: tuple, kwargs: Mapping[str, Any]
) -> dict[int, tuple[float, float]]:
    traced = trace(lambda v, inputs: model.apply_fn(v, *inputs, **kwargs), model.variables, inputs)
    found = {}
    for layer in survey(traced, trainable).layers:
        if layer.carrier is not None:
            found.setdefault(layer.carrier, (layer.shape.fan_in, layer.shape.fan_out))
    return found
