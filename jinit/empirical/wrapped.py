"""Explicit mode for models that carry their scales themselves, in modules wrapped by ``Normed``."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jinit.empirical.explicit import COLLECTION, NAMES, wrapped_modules
from jinit.empirical.job import Job
from jinit.empirical.names import Named
from jinit.empirical.plan import Plan, plan_of
from jinit.empirical.run import Findings

__all__ = ["filled", "restricted", "unscaled"]


def unscaled(variables: Any) -> Any:
    """Returns variables whose wrapped modules have all their scales at 1."""
    ones = {name: jnp.ones((), jnp.float32) for name in NAMES}
    for path, _ in wrapped_modules(variables):
        variables = _replaced(variables, (COLLECTION, *path.split("/")), ones)
    return variables


def restricted(job: Job, params: Any, inputs: Any, key: Any) -> Job:
    """Leaves out all leaves but those that carry a layer of a wrapped module, or are its bias.

    Raises:
        ValueError: A wrapped module holds several layers.
    """
    modules = tuple(path for path, _ in wrapped_modules(params))
    if not modules:
        return job
    plan, _ = plan_of(job, params, inputs, key)
    tuned = {
        leaf
        for module in modules
        for named in _layers(plan, module)
        for leaf in plan.naming.scaled(named)
    }
    frozen = [flag or leaf not in tuned for leaf, flag in enumerate(job.frozen)]
    return dataclasses.replace(job, frozen=tuple(frozen), modules=modules)


def _layers(plan: Plan, module: str) -> list[Named]:
    inside = [
        named
        for named in plan.naming.ordered
        if named.layer.carrier is not None and named.path.startswith(f"params/{module}/")
    ]
    if len(inside) > 1:
        names = ", ".join(named.label for named in inside)
        raise ValueError(
            f"the wrapped module {module} holds several layers, {names}, which one scale cannot "
            "bring to 1; wrap its leaf modules instead"
        )
    return inside


def filled(variables: Any, findings: Findings, leaves: Mapping[str, list[Any]]) -> Any:
    """Returns variables whose wrapped modules have the scales that were found.

    Args:
        variables: The variables, their parameters scaled already.
        findings: What was found.
        leaves: By leaf, its factors ``forward`` and ``weight``.
    """
    plan = findings.plan
    for module in plan.job.modules:
        for named in _layers(plan, module):
            leaf = plan.naming.leaf_at(named.layer.scaled[0][0], named)
            degree = named.layer.scaled[0][1].degree or 1.0
            gy = leaves["weight"][leaf]
            backward = jnp.asarray(findings.pillars.backward[named.statistic], jnp.float32)
            scales = {"a": leaves["forward"][leaf] ** degree, "gx": backward / gy, "gy": gy}
            variables = _replaced(variables, (COLLECTION, *module.split("/")), scales)
    return variables


def _replaced(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    """Returns a tree of dicts with one entry replaced."""
    if not path:
        return value
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], value)}
