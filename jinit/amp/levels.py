"""From a level and explicit keywords to a policy: what is given wins over the level's property."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jinit.amp.casting.dtypes import BFLOAT16, FLOAT16, FLOAT32
from jinit.amp.casting.op_lists import OpLists
from jinit.amp.policy import Policy, opt_levels
from jinit.amp.scaling.scale_schedule import parse_bool, parse_loss_scale, parse_positive
from jinit.modules.roles import parse_roles

__all__ = ["parse_ops", "resolve_half_dtype", "resolve_policy"]

_AMPERE = 8.0
_SHORT = {
    "bf16": BFLOAT16,
    "f16": FLOAT16,
    "f32": FLOAT32,
    "fp16": FLOAT16,
    "fp32": FLOAT32,
    "half": FLOAT16,
}


def resolve_policy(opt_level: Any, half_dtype: Any = "auto", **overrides: Any) -> Policy:
    """Resolves the properties in effect.

    Args:
        opt_level: ``"O0"`` to ``"O3"``.
        half_dtype: ``"auto"``, bfloat16 or float16. With ``"auto"``, an explicit half
            ``cast_model_type`` is the half type.
        **overrides: Properties of the policy by name; None leaves the level's.

    Returns:
        The policy.

    Raises:
        ValueError: If a value is not one that the property can have, or the level excludes it.
    """
    if not isinstance(opt_level, str) or opt_level not in ("O0", "O1", "O2", "O3"):
        raise ValueError(
            f"unknown opt_level {opt_level!r}: the levels are 'O0', 'O1', 'O2' and 'O3', "
            "with the letter O, not zero"
        )
    given = {
        name: _PARSERS[name](name, value) for name, value in overrides.items() if value is not None
    }
    cast_type = given.get("cast_model_type")
    half = _agree_on_half(half_dtype, cast_type if cast_type != FLOAT32 else None)
    _check_level(opt_level, given)
    return dataclasses.replace(opt_levels(half)[opt_level], **given)


def resolve_half_dtype(half_dtype: Any = "auto", devices: Sequence[Any] | None = None) -> np.dtype:
    """Chooses the half type.

    Args:
        half_dtype: bfloat16 or float16, as a dtype or its name, also ``"bf16"``, ``"fp16"``,
            ``"f16"`` and ``"half"``, which is float16 as torch's ``.half()`` is; or ``"auto"``:
            float16 if a device is an NVIDIA GPU older than Ampere (compute capability below 8.0),
            which has no bfloat16 products, and bfloat16 everywhere else.
        devices: The devices ``"auto"`` looks at, by default all of them.

    Returns:
        The dtype.

    Raises:
        ValueError: If it is another dtype.
    """
    if isinstance(half_dtype, str) and half_dtype == "auto":
        old = any(_capability(device) < _AMPERE for device in devices or jax.devices())
        return FLOAT16 if old else BFLOAT16
    return _parse_dtype("half_dtype", half_dtype, among="'auto', bfloat16 or float16")


def _capability(device: Any) -> float:
    """Returns an NVIDIA GPU's compute capability, infinity for every other device."""
    try:
        return float(getattr(device, "compute_capability", math.inf))
    except (TypeError, ValueError):  # AMD's is a name such as gfx90a
        return math.inf


def _agree_on_half(half_dtype: Any, cast_type: np.dtype | None) -> np.dtype:
    automatic = isinstance(half_dtype, str) and half_dtype == "auto"
    if automatic and cast_type is not None:
        return cast_type
    half = resolve_half_dtype(half_dtype)
    if cast_type not in (None, half):
        raise ValueError(
            f"half_dtype {half} and cast_model_type {cast_type} contradict each other: "
            "give one of them"
        )
    return half


def _check_level(opt_level: str, given: dict[str, Any]) -> None:
    if opt_level != "O1" and given.get("patch_functions"):
        raise ValueError(
            f"patch_functions=True casts operation by operation, which only opt_level 'O1' does, "
            f"not {opt_level!r}"
        )
    if opt_level == "O0" and "keep_fp32" in given:
        raise ValueError("opt_level 'O0' keeps everything float32: keep_fp32 must be None")
    if opt_level != "O1":
        return
    if given.get("cast_model_type", FLOAT32) != FLOAT32:
        raise ValueError(
            "opt_level 'O1' casts operations and leaves the parameters float32: to compute "
            f"wholly in {given['cast_model_type']} use opt_level 'O2' or 'O3'"
        )
    for name in ("keep_batchnorm_fp32", "master_weights", "keep_fp32"):
        if name in given:
            raise ValueError(
                f"opt_level 'O1' keeps parameters float32 by itself: {name} must be None, "
                f"not {given[name]}"
            )


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def _expanded(value: Any) -> Any:
    return _SHORT.get(value, value) if isinstance(value, str) else value


def _parse_dtype(name: str, value: Any, among: str = "bfloat16, float16 or float32") -> np.dtype:
    try:
        dtype = None if _is_array(value) else jnp.dtype(_expanded(value))
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in re.findall(r"\w+", among):
        raise ValueError(f"{name} must be {among}, not {value!r}")
    return dtype


def _parse_masters(name: str, value: Any) -> bool | str:
    if isinstance(value, str) and value == "optimizer":
        return value
    return parse_bool(name, value, among="True, False, 'True', 'False', 'optimizer' or None")


def parse_ops(name: str, value: Any) -> OpLists:
    """Checks the lists of autocast.

    Args:
        name: What the value is called in the error.
        value: What was given.

    Returns:
        The lists.

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(value, OpLists):
        raise ValueError(f"{name} must be amp.OPS or its extension, not {value!r}")
    return value


def _parse_predicate(name: str, value: Any) -> Any:
    if not callable(value):
        raise ValueError(f"{name} must be a function of path and module type, not {value!r}")
    return value


_PARSERS = {
    "cast_model_type": _parse_dtype,
    "cast_model_outputs": _parse_dtype,
    "patch_functions": parse_bool,
    "keep_batchnorm_fp32": parse_bool,
    "keep_fp32": _parse_predicate,
    "master_weights": _parse_masters,
    "loss_scale": parse_loss_scale,
    "min_loss_scale": parse_positive,
    "ops": parse_ops,
    "roles": lambda _, roles: parse_roles(roles),
    "max_loss_scale": parse_positive,
}
