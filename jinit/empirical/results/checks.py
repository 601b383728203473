"""What a finished calibration is checked for, before anything is returned."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jinit.empirical.layer_names import LayerNames
from jinit.empirical.solve import Findings, Scaled

__all__ = ["check_findings", "check_scaled"]

_QUANTITIES = {
    "activation": "output",
    "gradient": "gradient at the input",
    "update": "change along the optimizer's step",
}


def check_scaled(found: Scaled) -> None:
    """Raises ValueError where an output was not finite, and names its layer; traced values pass."""
    if not isinstance(found.activation, Tracer):
        _check_quantity(found.model.names, found.activation, _QUANTITIES["activation"])
        _check_range(found.model.names, found.scales, "scale")


def check_findings(findings: Findings) -> None:
    """Raises ValueError where a calibration cannot be used; traced values pass.

    The first layer at which something was not finite is named.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(findings)):
        return
    solved = jax.device_get(findings.solved)
    for quantity, described in _QUANTITIES.items():
        _check_quantity(findings.model.names, getattr(solved, quantity), described)
    _check_moves(findings)
    _check_degrees(findings)
    _check_solution(findings)


def _check_quantity(names: LayerNames, values: Any, described: str) -> None:
    finite = np.isfinite(values).all(axis=0)
    bad = [named for named in names.ordered if not finite[named.statistic]]
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
    degrees, given = np.asarray(findings.degrees), findings.model.request.optimizer.given
    if not degrees.size:
        return
    known = np.isfinite(degrees)
    means = np.where(known, degrees, 0).sum(0) / np.maximum(known.sum(0), 1)
    by_gradient, by_parameters = means
    odd = np.minimum(abs(by_gradient), abs(by_gradient - 1)) > 0.05
    if odd.any() or (abs(by_parameters) > 0.05).any():
        raise ValueError(
            f"mode='explicit' cannot follow optimizer={given!r}: its first "
            "step must be as large as the gradient (SGD) or independent of its size (Adam), and "
            "must not depend on the parameters; pass it without weight decay or trust ratio, or "
            "use mode='fold'"
        )


def _check_moves(findings: Findings) -> None:
    """Raises ValueError for an optimizer whose first step is zero where gradients are not."""
    optimizer, still = findings.model.request.optimizer, not np.any(findings.solved.update)
    if still and not np.all(findings.null) and optimizer.direction is None:
        raise ValueError(
            f"the first step of optimizer={optimizer.given!r} changes nothing, and no "
            "later one could be found; pass it without the schedule or the wrapper that holds it "
            "back, such as optax.adam(1.0)"
        )


def _check_solution(findings: Findings) -> None:
    model, solution = findings.model, findings.solution
    vectors = {"scale": solution.parameter_scale, "learning-rate multiplier": solution.multiplier}
    if model.request.mode == "explicit":
        vectors |= {
            "forward scale": solution.applied_scale,
            "backward scale": solution.leaf_gradient_scale,
        }
    for described, vector in vectors.items():
        _check_range(model.names, model.by_leaf(vector), described)


def _check_range(names: LayerNames, parts: Sequence[Any], described: str) -> None:
    """Raises ValueError for a number that float32 does not have."""
    limits = np.finfo(np.float32)
    for path, part in zip(names.paths, parts, strict=True):
        bad = np.asarray(part)[~((part >= limits.tiny) & (part <= limits.max))]
        if bad.size:
            raise ValueError(
                f"the {described} of {path or '.'} is {bad[0]:.3g}, which is beyond the range of "
                "float32; params are unchanged. Bring its values nearer to 1 before they are "
                "measured, or the loss, or use mode='fold'"
            )
