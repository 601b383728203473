"""How the scale of a loss follows from the last one, as plain arithmetic."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

__all__ = [
    "GREATEST_SCALE",
    "LEAST_SCALE",
    "ScaleSchedule",
    "parse_bool",
    "parse_count",
    "parse_loss_scale",
    "parse_positive",
]

LEAST_SCALE, GREATEST_SCALE = 2.0**-126, 2.0**126  # these and their reciprocals are normal float32


@dataclasses.dataclass(frozen=True)
class ScaleSchedule:
    """Holds a checked loss scale, and moves it after every step.

    Args:
        initial: The first scale.
        dynamic: Whether it moves.
        skips: Whether a step that was not finite is skipped.
        growth_factor: What it is multiplied by after ``growth_interval`` finite steps.
        backoff_factor: What it is multiplied by after a step that was not finite.
        hysteresis: How many such steps in a row it takes to multiply.
        growth_interval: Finite steps from the last change of the scale to its growth.
        minimum: The least scale.
        maximum: The greatest scale.
    """

    initial: float
    dynamic: bool
    skips: bool
    growth_factor: float
    backoff_factor: float
    growth_interval: int
    hysteresis: int
    minimum: float
    maximum: float

    @classmethod
    def parse(
        cls,
        loss_scale: Any,
        *,
        init_scale: Any,
        growth_factor: Any,
        backoff_factor: Any,
        growth_interval: Any,
        hysteresis: Any,
        min_loss_scale: Any,
        max_loss_scale: Any,
        skip_nonfinite: Any,
    ) -> "ScaleSchedule":
        """Checks the arguments of ``loss_scaling`` and brings them within float32's range.

        Raises:
            ValueError: If one is out of its range.
        """
        scale = parse_loss_scale("loss_scale", loss_scale)
        first = parse_positive("init_scale", init_scale)
        growth = parse_positive("growth_factor", growth_factor)
        backoff = parse_positive("backoff_factor", backoff_factor)
        low = 0.0 if min_loss_scale is None else parse_positive("min_loss_scale", min_loss_scale)
        high = parse_positive("max_loss_scale", max_loss_scale)
        interval = parse_count("growth_interval", growth_interval)
        patience = parse_count("hysteresis", hysteresis)
        skips = parse_bool("skip_nonfinite", skip_nonfinite, among="True or False")
        if growth <= 1:
            raise ValueError(f"growth_factor must be above 1, not {growth_factor!r}")
        if backoff >= 1:
            raise ValueError(f"backoff_factor must be below 1, not {backoff_factor!r}")
        if low > high:
            raise ValueError(f"min_loss_scale {low} is above max_loss_scale {high}")
        if scale != "dynamic" and not LEAST_SCALE <= scale <= GREATEST_SCALE:
            raise ValueError(f"loss_scale must be between 2**-126 and 2**126, not {loss_scale!r}")
        low, high = max(low, LEAST_SCALE), min(high, GREATEST_SCALE)
        dynamic = scale == "dynamic"
        initial = min(max(first, low), high) if scale == "dynamic" else scale
        return cls(
            initial=initial,
            dynamic=dynamic,
            skips=dynamic or skips,
            growth_factor=growth,
            backoff_factor=backoff,
            growth_interval=interval,
            hysteresis=patience,
            minimum=low,
            maximum=high,
        )

    def next(
        self,
        loss_scale: jax.Array,
        growth_count: jax.Array,
        overflow_count: jax.Array,
        finite: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the scale and both counts after a step.

        Args:
            loss_scale: Float32, of one shape with the others, () or one entry a loss.
            growth_count: Int32, steps since the scale last changed or a step was skipped.
            overflow_count: Int32, steps in a row that were not finite.
            finite: Bool, whether the step's gradients were finite.
        """
        growths = jnp.asarray(optax.safe_increment(growth_count))
        overflows = jnp.where(finite, 0, jnp.asarray(optax.safe_increment(overflow_count)))
        if self.skips:
            growths = jnp.where(finite, growths, 0)
        if not self.dynamic:
            return loss_scale, growths, overflows
        due = growths == self.growth_interval
        grown = jnp.minimum(loss_scale * self.growth_factor, self.maximum)
        reduced = jnp.maximum(loss_scale * self.backoff_factor, self.minimum)
        scale = jnp.where(due, grown, loss_scale)
        scale = jnp.where(overflows >= self.hysteresis, reduced, scale)
        return scale, jnp.where(due, 0, growths), overflows


def parse_positive(name: str, value: Any, *, otherwise: str = "") -> float:
    """Reads a positive, finite number, or one in a string.

    Args:
        name: What the value is called in the error.
        value: What was given.
        otherwise: What else could have been given, for the error.

    Returns:
        The number.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be {otherwise}a positive, finite number, not {value!r}")
    return number


def parse_bool(name: str, value: Any, among: str = "True, False, 'True', 'False' or None") -> bool:
    """Reads a truth value, or one in a string.

    Args:
        name: What the value is called in the error.
        value: What was given.
        among: What could have been given, for the error.

    Returns:
        The truth value.

    Raises:
        ValueError: If it is anything else.
    """
    parsed = {"True": True, "False": False}.get(value, value) if isinstance(value, str) else value
    if not isinstance(parsed, bool | np.bool_):
        raise ValueError(f"{name} must be {among}, not {value!r}")
    return bool(parsed)


def parse_count(name: str, value: Any) -> int:
    """Checks a positive integer that fits into int32.

    Args:
        name: What the value is called in the error.
        value: What was given.

    Returns:
        The number.

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ValueError(f"{name} must be a positive integer, not {value!r}")
    return int(value)


def parse_loss_scale(name: str, value: Any) -> float | Literal["dynamic"]:
    """Reads ``"dynamic"``, or what ``parse_positive`` reads."""
    if isinstance(value, str) and value == "dynamic":
        return "dynamic"
    return parse_positive(name, value, otherwise="'dynamic' or ")
