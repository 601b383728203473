"""The trees that a calibration returns: parameters rescaled, multipliers and scales beside."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jinit._arithmetic import merge
from jinit.empirical.explicit.scale_tree import COLLECTION, explicit_scales
from jinit.empirical.explicit.wrapped_modules import filled
from jinit.empirical.measuring.meshes import laid_like
from jinit.empirical.measuring.passes import rescale
from jinit.empirical.request import Problem
from jinit.empirical.results.calibration import Calibration
from jinit.empirical.solve import Findings
from jinit.modules.roles import optimized
from jinit.typing import PyTree

__all__ = ["calibration_of", "rescaled"]


def calibration_of(problem: Problem, findings: Findings) -> Calibration:
    """Builds what ``calibrate`` returns."""
    explicit = findings.model.request.mode == "explicit"
    return (_explicit if explicit else _folded)(problem, findings)


def _folded(problem: Problem, findings: Findings) -> Calibration:
    solution, params = findings.solution, problem.params
    scales, multipliers = (
        _by_leaf(findings, v, params) for v in (solution.parameter_scale, solution.multiplier)
    )
    return Calibration(
        params=problem.model.restore(rescaled(problem, scales)),
        multipliers=_beside(problem, multipliers),
        scales=_beside(problem, scales),
        _findings=findings,
    )


def _beside(problem: Problem, values: Sequence[Any]) -> PyTree:
    """Builds a tree like the variables; of a module, like those that an optimizer sees."""
    request = problem.request
    tree = jax.tree.unflatten(jax.tree.structure(problem.params), values)
    of_object = problem.model.is_object
    return optimized(tree, request.trainable, request.collection) if of_object else tree


def _explicit(problem: Problem, findings: Findings) -> Calibration:
    solution, model, params = findings.solution, findings.model, problem.params
    request = model.request
    folded = solution.parameter_scale / solution.applied_scale
    kept = rescaled(problem, _by_leaf(findings, folded, params))
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
        kept = {**kept, COLLECTION: scales} if request.scales_inside else kept
    ones = _by_leaf(findings, np.ones(model.layout.slots), params)
    return Calibration(
        params=problem.model.restore(kept),
        multipliers=_beside(problem, ones),
        scales=scales,
        _findings=findings,
    )


def _by_leaf(findings: Findings, vector: Any, params: PyTree) -> list[jax.Array]:
    return laid_like(findings.model.by_leaf(vector), jax.tree.leaves(params))


def rescaled(problem: Problem, scales: Sequence[Any]) -> PyTree:
    """Multiplies every parameter by its scale, where it is; what is no parameter stays what it is.

    A multiplication by 1 would round the smallest numbers to 0, and move arrays to devices.
    """
    leaves, tree = jax.tree.flatten(problem.params)
    flags = problem.request.trainable
    pairs = [(leaf, scale) for leaf, scale, flag in zip(leaves, scales, flags, strict=True) if flag]
    moved = rescale(*zip(*pairs, strict=True))
    return jax.tree.unflatten(tree, merge(leaves, moved, flags))
