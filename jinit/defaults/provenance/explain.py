"""Says what an initializer draws: the distribution with its parameters, and the fans."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jinit.defaults.passed import Passed
from jinit.defaults.tables.gates import Joint, PerGate
from jinit.initializers import (
    constant,
    delta_orthogonal,
    normal,
    orthogonal,
    scaled,
    truncated_normal,
    uniform,
    variance_scaling,
)
from jinit.initializers.base import Initializer
from jinit.initializers.variance_scaling import VarianceScaling

__all__ = ["explain", "pinned"]

Fans = tuple[float, float]


def pinned(init: Any) -> Any:
    """Returns what an initializer will draw with next: of those by gate, the gate's own."""
    return init.inits[init.drawn.taken] if isinstance(init, PerGate) else init


def explain(init: Any, shape: Sequence[int]) -> tuple[str, Fans | None]:
    """Returns the distribution of an array of ``shape``, and the fans it follows from.

    Args:
        init: An initializer, of jinit or another function, or a number.
        shape: The shape that it is called with.

    Returns:
        The text, which names factories of ``jinit.initializers`` and draws the same if it is
        evaluated (a function of the user's own has its name alone); and ``fan_in`` and
        ``fan_out`` where the initializer looks at fans.

    Example:
        >>> import jax
        >>> explain(jax.nn.initializers.lecun_normal(), (64, 8))[1]
        (64, 8)
    """
    if isinstance(init, Joint):
        text, fans = explain(init.init, init.matrix_shape(shape))
        return f"{text}  # all gates as one", fans
    if isinstance(init, scaled):
        text, fans = explain(init.init, shape)
        return f"scaled({text}, {init.scale:.4g})", fans
    init = _as_ours(init)
    if isinstance(init, VarianceScaling):
        return _call(init.resolve(shape)), _fans(init, shape)
    return _call(init) if isinstance(init, Initializer) else _foreign(init), None


def _as_ours(init: Any) -> Any:
    """Turns numbers, and what the factories of JAX and Flax return, into initializers of jinit."""
    if isinstance(init, int | float):
        return constant(init)
    init = init.init if isinstance(init, Passed) else init
    inner = inspect.unwrap(init.func if isinstance(init, functools.partial) else init)
    if (getattr(inner, "__module__", None) or "").partition(".")[0] not in ("jax", "flax"):
        return inner
    factory = _OURS.get(_factory(inner))
    return inner if factory is None else factory(_captured(inner)) or inner


def _factory(function: Any) -> str:
    """Returns the name of the factory that made a function, or of the function itself."""
    return getattr(function, "__qualname__", type(function).__name__).split(".<locals>")[0]


def _variance_scaling(given: Mapping[str, Any]) -> Initializer:
    axes = {name: given[name] for name in ("in_axis", "out_axis", "batch_axis")}
    return variance_scaling(given["scale"], given["mode"], given["distribution"], **axes)


def _constant(given: Mapping[str, Any]) -> Initializer | None:
    return constant(given["value"]) if np.size(given["value"]) <= _FEW else None


def _truncated_normal(given: Mapping[str, Any]) -> Initializer:
    bounds = {"low": given["lower"], "high": given["upper"]}
    return truncated_normal(std=given["stddev"], relative=True, **bounds)


def _orthogonal(init: Callable[..., Initializer], given: Mapping[str, Any]) -> Initializer:
    return init(gain=given["scale"], out_axis=given["column_axis"])


_FEW = 16  # numbers of a constant that are printed

_OURS: Mapping[str, Callable[[Mapping[str, Any]], Initializer | None]] = {
    "variance_scaling": _variance_scaling,
    "normal": lambda given: normal(mean=0.0, std=given["stddev"]),
    "uniform": lambda given: uniform(low=0.0, high=given["scale"]),
    "truncated_normal": _truncated_normal,
    "constant": _constant,
    "orthogonal": functools.partial(_orthogonal, orthogonal),
    "modified_orthogonal": lambda _: orthogonal(),
    "delta_orthogonal": functools.partial(_orthogonal, delta_orthogonal),
}
"""What draws the same as the factories of JAX and Flax, from what they were given."""


def _captured(function: Any) -> Mapping[str, Any]:
    """Returns the arguments of the factory that made a function."""
    return inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}


def _fans(init: VarianceScaling, shape: Sequence[int]) -> Fans:
    fan_in, fan_out = init.fans or (None, None)
    if fan_in is None or fan_out is None:
        of_shape = init.shape_fans(shape)
        return fan_in or of_shape[0], fan_out or of_shape[1]
    return fan_in, fan_out


def _call(init: Initializer) -> str:
    return _format(type(init).__name__, init.shown())


def _foreign(init: Any) -> str:
    if dataclasses.is_dataclass(init):
        return repr(init)
    if init in (jax.nn.initializers.zeros, jax.nn.initializers.ones):
        return f"{init.__name__}()"
    simple = {k: v for k, v in _captured(init).items() if isinstance(v, int | float | str)}
    return _format(_factory(init), simple) if simple else _factory(init)


def _format(name: str, arguments: Mapping[str, Any]) -> str:
    texts = {k: f"{v:.4g}" if isinstance(v, float) else repr(v) for k, v in arguments.items()}
    return f"{name}({', '.join(f'{key}={text}' for key, text in texts.items())})"
