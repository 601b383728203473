"""How the scale of a loss follows from the last one, as plain arithmetic."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

__all__ = ["ScaleSchedule", "parse_loss_scale", "parse_positive"]


@dataclasses.dataclass(frozen=True)
class ScaleSchedule:
    """Holds a checked loss scale, and moves it after every step.

    Args:
        initial: The first scale.
        dynamic: Whether it moves.
        growth_factor: What it is multiplied by after ``growth_interval`` finite steps.
        backoff_factor: What it is multiplied by after a step that was not finite.
        growth_interval: Finite steps from the last change of the scale to its growth.
        minimum: The least scale.
        maximum: The greatest scale.
    """

    initial: float
    dynamic: bool
    growth_factor: float
    backoff_factor: float
    growth_interval: int
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
        min_loss_scale: Any,
        max_loss_scale: Any,
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
        if growth <= 1:
            raise ValueError(f"growth_factor must be above 1, not {growth_factor!r}")
        if backoff >= 1:
            raise ValueError(f"backoff_factor must be below 1, not {backoff_factor!r}")
        if not _is_positive_integer(growth_interval):
            raise ValueError(f"growth_interval must be a positive integer, not {growth_interval!r}")
        if low > high:
            raise ValueError(f"min_loss_scale {low} is above max_loss_scale {high}")
        float32 = jnp.finfo(jnp.float32)
        low, high = max(low, float(float32.tiny)), min(high, float(float32.max))
        dynamic = scale == "dynamic"
        initial = min(max(first, low), high) if scale == "dynamic" else scale
        return cls(initial, dynamic, growth, backoff, growth_interval, low, high)

    def next(
        self, loss_scale: jax.Array, growth_count: jax.Array, finite: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the scale and the count of steps after a step.

        Args:
            loss_scale: Float32 of shape ().
            growth_count: Int32 of shape ().
            finite: Bool of shape (), whether the step's gradients were finite.
        """
        count = jnp.asarray(optax.safe_increment(growth_count))
        if not self.dynamic:
            return loss_scale, count
        count = jnp.where(finite, count, 0)
        due = count == self.growth_interval
        grown = jnp.minimum(loss_scale * self.growth_factor, self.maximum)
        reduced = jnp.maximum(loss_scale * self.backoff_factor, self.minimum)
        scale = jnp.where(finite, jnp.where(due, grown, loss_scale), reduced)
        return scale, jnp.where(due, 0, count)


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


def parse_loss_scale(name: str, value: Any) -> float | Literal["dynamic"]:
    """Reads ``"dynamic"``, or what ``parse_positive`` reads."""
    if isinstance(value, str) and value == "dynamic":
        return "dynamic"
    return parse_positive(name, value, otherwise="'dynamic' or ")


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
