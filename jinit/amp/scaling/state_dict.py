"""The scales of an optimizer as a plain dictionary, in the form that apex saves."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jinit._known import known_arguments
from jinit.amp.arguments import shown
from jinit.amp.scaling.scale_schedule import GREATEST_SCALE, LEAST_SCALE
from jinit.amp.scaling.scaled_gradients import find_scale

__all__ = ["load_state_dict", "state_dict"]

_FIELDS = ("loss_scale", "unskipped")


@known_arguments
def state_dict(opt_state: optax.OptState) -> dict[str, dict[str, float | int]]:
    """Reads the scales of an optimizer's state.

    A checkpoint of ``opt_state`` itself holds more: the inner optimizer, and the overflows in a
    row that ``hysteresis`` counts.

    Args:
        opt_state: A state that holds one ``LossScalingState``, at any depth.

    Returns:
        ``{"loss_scaler0": {"loss_scale": float, "unskipped": int}, ...}``, an entry a loss.

    Raises:
        TypeError: If ``opt_state`` is an optimizer, or what cannot be a state.
        ValueError: If the state does not hold exactly one loss scale.

    Example:
        >>> from jinit import amp
        >>> state_dict(amp.loss_scaling(optax.sgd(0.1)).init(jnp.ones(2)))
        {'loss_scaler0': {'loss_scale': 65536.0, 'unskipped': 0}}

    Source:
        NVIDIA apex's ``amp.state_dict``.
    """
    scales = np.ravel(find_scale(opt_state)).tolist()
    counts = np.ravel(jnp.asarray(optax.tree.get(opt_state, "growth_count"))).tolist()
    return {
        f"loss_scaler{i}": dict(zip(_FIELDS, pair, strict=True))
        for i, pair in enumerate(zip(scales, counts, strict=True))
    }


@known_arguments
def load_state_dict(
    opt_state: optax.OptState, state: Mapping[str, Mapping[str, ArrayLike]]
) -> optax.OptState:
    """Returns an optimizer's state with its scales set as in a dictionary.

    Args:
        opt_state: A state that holds one ``LossScalingState``, at any depth. It is not changed.
        state: What ``state_dict`` returned, of an optimizer with as many losses; numbers may be
            arrays of one element.

    Returns:
        The state with these scales and counts, no overflow in a row, and all else as it was.

    Raises:
        TypeError: If ``opt_state`` is an optimizer, or the two are swapped.
        ValueError: If the dictionary has another shape, or a number is out of its range.

    Example:
        >>> from jinit import amp
        >>> opt_state = amp.loss_scaling(optax.sgd(0.1)).init(jnp.ones(2))
        >>> saved = {"loss_scaler0": {"loss_scale": 128.0, "unskipped": 3}}
        >>> state_dict(load_state_dict(opt_state, saved)) == saved
        True

    Source:
        NVIDIA apex's ``amp.load_state_dict``, which warns where this raises.
    """
    if isinstance(opt_state, Mapping) and not isinstance(state, Mapping):
        raise TypeError(
            f"state must be a dictionary, not {shown(state)}: the order is opt_state, state"
        )
    count = find_scale(opt_state).size
    names = [f"loss_scaler{i}" for i in range(count)]
    problems = _problems(names, state)
    if problems:
        raise ValueError(f"the state dict does not fit: {'; '.join(problems)}")

    def filled(field: str, values: list[Any]) -> Any:
        def fill(leaf: Any) -> jax.Array:
            return jnp.zeros_like(leaf) + np.reshape(np.asarray(values, leaf.dtype), leaf.shape)

        return jax.tree.map(fill, optax.tree.get(opt_state, field))

    columns = {
        field: [np.asarray(state[name][field]).item() for name in names] for field in _FIELDS
    }
    return optax.tree.set(
        opt_state,
        loss_scale=filled("loss_scale", columns["loss_scale"]),
        growth_count=filled("growth_count", columns["unskipped"]),
        overflow_count=filled("overflow_count", [0] * count),
    )


def _problems(names: list[str], state: Any) -> list[str]:
    """Says of every entry that is missing, unknown or out of its range what is wrong."""
    if not _has_keys(state, names):
        return [f"it must hold {_listed(names)}, an entry a loss, not {_keys(state)}"]
    problems = []
    for name in names:
        if not _has_keys(state[name], _FIELDS):
            problems.append(f"{name} must hold {_listed(_FIELDS)}, not {_keys(state[name])}")
            continue
        scale, unskipped = (state[name][field] for field in _FIELDS)
        if not _is_scale(scale):
            problems.append(f"{name}.loss_scale must be between 2**-126 and 2**126, not {scale!r}")
        if not _is_count(unskipped):
            problems.append(f"{name}.unskipped must be a count, not {unskipped!r}")
    return problems


def _has_keys(value: Any, keys: Sequence[str]) -> bool:
    return isinstance(value, Mapping) and set(value) == set(keys)


def _listed(names: Sequence[Any]) -> str:
    return " and ".join(map(str, names)) or "nothing"


def _keys(value: Any) -> str:
    return _listed(list(value)) if isinstance(value, Mapping) else reprlib.repr(value)


def _is_scale(value: Any) -> bool:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "fiu":
        return False
    return LEAST_SCALE <= array.item() <= GREATEST_SCALE


def _is_count(value: Any) -> bool:
    array = np.asarray(value)
    return array.size == 1 and array.dtype.kind in "iu" and 0 <= array.item() < 2**31
