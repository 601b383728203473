"""What a finished calibration is checked for, before anything is returned."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jinit.empirical.names import Naming
from jinit.empirical.run import Findings, Scaled

__all__ = ["check_findings", "check_scaled"]

_QUANTITIES = {
    "activation": "output",
    "gradient": "gradient at the input",
    "update": "change along the optimizer's step",
}


def check_scaled(found: Scaled) -> None:
    """Raises ValueError where an output was not finite, and names its layer; traced values pass."""
    if not isinstance(found.activation, Tracer):
        _check_quantity(found.plan.naming, found.activation, _QUANTITIES["activation"])
        _check_range(found.plan.naming, found.scales, "scale")


def check_findings(findings: Findings) -> None:
    """Raises ValueError where a calibration cannot be used; traced values pass.

    The first layer at which something was not finite is named.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(findings)):
        return
    solved = jax.device_get(findings.solved)
    for quantity, described in _QUANTITIES.items():
        _check_quantity(findings.plan.naming, getattr(solved, quantity), described)
    _check_moves(findings)
    _check_degrees(findings)
    _check_pillars(findings)


def _check_quantity(naming: Naming, values: Any, described: str) -> None:
    finite = np.isfinite(values).all(axis=0)
    bad = [named for named in naming.ordered if not finite[named.statistic]]
    if "gradient" in described:
        bad = bad[::-1]  # the backward pass meets the last layer first
    if bad:
        raise ValueError(
            f"the {described} of {bad[0].label} is not finite, the first of {len(bad)} such "
            "layers; params are unchanged. Look for a division by zero, a logarithm or a square "
            "root of 0 at it, or for values beyond the range of its dtype"
        )


def _check_degrees(findings: Findings) -> None:
    """Raises ValueError for an optimizer that explicit mode cannot follow."""
    degrees = np.asarray(findings.degrees)
    if not degrees.size:
        return
    known = np.isfinite(degrees)
    means = np.where(known, degrees, 0).sum(0) / np.maximum(known.sum(0), 1)
    by_gradient, by_parameters = means
    odd = np.minimum(abs(by_gradient), abs(by_gradient - 1)) > 0.05
    if odd.any() or (abs(by_parameters) > 0.05).any():
        raise ValueError(
            f"mode='explicit' cannot follow optimizer={findings.plan.job.optimizer!r}: its first "
            "step must be as large as the gradient (SGD) or independent of its size (Adam), and "
            "must not depend on the parameters; pass it without weight decay or trust ratio, or "
            "use mode='fold'"
        )


def _check_moves(findings: Findings) -> None:
    """Raises ValueError for an optimizer whose first step is zero where gradients are not."""
    still = not np.any(findings.solved.update)
    if still and not np.all(findings.null) and not isinstance(findings.plan.job.optimizer, str):
        raise ValueError(
            f"the first step of optimizer={findings.plan.job.optimizer!r} changes nothing, and no "
            "later one could be found; pass it without the schedule or the wrapper that holds it "
            "back, such as optax.adam(1.0)"
        )


def _check_pillars(findings: Findings) -> None:
    plan, pillars = findings.plan, findings.pillars
    vectors = {"scale": pillars.scale, "learning-rate multiplier": pillars.multiplier}
    if plan.job.mode == "explicit":
        vectors |= {"forward scale": pillars.forward, "backward scale": pillars.weight}
    for described, vector in vectors.items():
        _check_range(plan.naming, plan.by_leaf(vector), described)


def _check_range(naming: Naming, parts: Sequence[Any], described: str) -> None:
    """Raises ValueError for a number that float32 does not have."""
    limits = np.finfo(np.float32)
    for path, part in zip(naming.paths, parts, strict=True):
        bad = np.asarray(part)[~((part >= limits.tiny) & (part <= limits.max))]
        if bad.size:
            raise ValueError(
                f"the {described} of {path or '.'} is {bad[0]:.3g}, which is beyond the range of "
                "float32; params are unchanged. Bring its values nearer to 1 before they are "
                "measured, or the loss, or use mode='fold'"
            )
