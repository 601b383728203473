"""The trees that a calibration returns: parameters rescaled, multipliers and scales beside."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jinit.empirical.explicit.scale_tree import COLLECTION, explicit_scales
from jinit.empirical.explicit.wrapped_modules import filled
from jinit.empirical.measuring.meshes import laid_like
from jinit.empirical.measuring.passes import rescale
from jinit.empirical.results.calibration import Calibration
from jinit.empirical.solve import Findings
from jinit.typing import PyTree

__all__ = ["calibration_of", "rescaled"]


def calibration_of(params: PyTree, findings: Findings) -> Calibration:
    """Builds what ``calibrate`` returns."""
    explicit = findings.model.request.mode == "explicit"
    return (_explicit if explicit else _folded)(params, findings)


def _folded(params: PyTree, findings: Findings) -> Calibration:
    solution = findings.solution
    scales, multipliers = (
        _by_leaf(findings, v, params) for v in (solution.parameter_scale, solution.multiplier)
    )
    tree = jax.tree.structure(params)
    return Calibration(
        params=rescaled(params, scales),
        multipliers=jax.tree.unflatten(tree, multipliers),
        scales=jax.tree.unflatten(tree, scales),
        _findings=findings,
    )


def _explicit(params: PyTree, findings: Findings) -> Calibration:
    solution, model = findings.solution, findings.model
    request = model.request
    folded = solution.parameter_scale / solution.applied_scale
    kept = rescaled(params, _by_leaf(findings, folded, params))
    found = (
        _by_leaf(findings, solution.applied_scale, params),
        _by_leaf(findings, solution.leaf_gradient_scale, params),
        solution.gradient_scale,
    )
    if request.modules:
        kept = filled(kept, request.modules, model.names, *found)
        scales = kept[COLLECTION]
    else:
        scales = explicit_scales(model.names, *found, request.collection)
        kept = {**kept, COLLECTION: scales} if request.collection == "params" else kept
    ones = _by_leaf(findings, np.ones(model.layout.slots), params)
    return Calibration(
        params=kept,
        multipliers=jax.tree.unflatten(jax.tree.structure(params), ones),
        scales=scales,
        _findings=findings,
    )


def _by_leaf(findings: Findings, vector: Any, params: PyTree) -> list[jax.Array]:
    return laid_like(findings.model.by_leaf(vector), jax.tree.leaves(params))


def rescaled(params: PyTree, scales: Sequence[Any]) -> PyTree:
    """Multiplies every leaf by its scale, where it is."""
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, rescale(leaves, scales))
