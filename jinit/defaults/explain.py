"""Says what an initializer draws: the distribution with its parameters, and the fans."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jinit.defaults.gates import Joint, PerGate
from jinit.defaults.passed import Passed
from jinit.initializers import constant, scaled, variance_scaling
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
        The text, and ``fan_in`` and ``fan_out`` where the initializer looks at fans.

    Example:
        >>> import jax
        >>> explain(jax.nn.initializers.lecun_normal(), (64, 8))[1]
        (64, 8)
    """
    if isinstance(init, Joint):
        text, fans = explain(init.init, init.matrix_shape(shape))
        return f"{text}, all gates as one", fans
    if isinstance(init, scaled):
        text, fans = explain(init.init, shape)
        return f"{init.scale:.4g} * {text}", fans
    init = _as_ours(init)
    if isinstance(init, VarianceScaling):
        return _call(init.resolve(shape)), _fans(init, shape)
    return _call(init) if isinstance(init, Initializer) else _foreign(init), None


def _as_ours(init: Any) -> Any:
    """Turns numbers, and JAX's own variance scaling, into initializers of jinit."""
    if isinstance(init, int | float):
        return constant(init)
    init = init.init if isinstance(init, Passed) else init
    inner = inspect.unwrap(init.func if isinstance(init, functools.partial) else init)
    found = _captured(inner)
    if not {"scale", "mode", "distribution", "in_axis", "out_axis", "batch_axis"} <= set(found):
        return inner
    axes = {name: found[name] for name in ("in_axis", "out_axis", "batch_axis")}
    return variance_scaling(found["scale"], found["mode"], found["distribution"], **axes)


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
    fields = {
        f.name: getattr(init, f.name) for f in dataclasses.fields(init) if f.init and not f.kw_only
    }
    return _format(type(init).__name__, fields)


def _foreign(init: Any) -> str:
    if dataclasses.is_dataclass(init):
        return repr(init)
    simple = {k: v for k, v in _captured(init).items() if isinstance(v, int | float | str)}
    name = getattr(init, "__qualname__", type(init).__name__).split(".<locals>")[0]
    return _format(name, simple) if simple else name


def _format(name: str, arguments: Mapping[str, Any]) -> str:
    texts = {k: f"{v:.4g}" if isinstance(v, float) else repr(v) for k, v in arguments.items()}
    return f"{name}({', '.join(f'{key}={text}' for key, text in texts.items())})"
