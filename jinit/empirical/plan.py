"""A traced model: its layers, what they are called, and how each is measured and scaled."""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex

from jinit._trees import leaf_paths
from jinit.empirical.arguments import check_call, explaining_pairs
from jinit.empirical.inputs import call_loss, check_layers, describe_call
from jinit.empirical.job import Job
from jinit.empirical.layout import Layout
from jinit.empirical.measure import Meter
from jinit.empirical.names import Naming
from jinit.empirical.rounding import rounding_unit
from jinit.empirical.scales import Solver
from jinit.empirical.steps import first_moves_of, first_step
from jinit.empirical.targets import target_of
from jinit.layers import Survey, survey
from jinit.tracing import Rolled, TracedFunction, roll, trace, trace_context

__all__ = ["Plan", "plan_of"]

_KEPT = 64  # plans; the least recently used is dropped


@dataclass(frozen=True, eq=False)
class Plan:
    """A traced model. It is compared by identity, and kept: programs are compiled for it.

    Attributes:
        job: What it was traced for.
        tree: The structure of its variables.
        rolled: The traced function, equal layers as one loop.
        found: Its layers.
        naming: What they and their leaves are called.
        moves: Of every parameter, which step of the optimizer is the first that moves it.
    """

    job: Job
    tree: Any
    rolled: Rolled
    found: Survey
    naming: Naming
    moves: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        """Where the numbers of layers and leaves stand."""
        return self.naming.layout

    @functools.cached_property
    def solver(self) -> Solver:
        """What statistics mean for leaves."""
        return Solver(self.layout, self.naming.slots_of(self.job.frozen))

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """The RMS of every output; one a statistic."""
        targets = np.ones(self.layout.size, np.float32)
        for layer, statistic in self.naming.infos(self.solver.tuned):
            targets[statistic] = target_of(self.job.target, layer)
        return targets

    @functools.cached_property
    def rounding_unit(self) -> float:
        """What parameters are changed by to find out which gradients are rounding."""
        return rounding_unit(self.rolled.traced.jaxpr)

    def meter(self, consts: Sequence[Any]) -> Meter:
        """Returns what measures the layers, given the arrays that the model closed over."""
        zeros = {i for i, group in enumerate(self.rolled.groups) if {*group} & {*self.job.zeros}}
        traced = replace(self.rolled.traced, consts=consts)
        balanced = self.job.mode == "explicit"
        return Meter(
            traced, self.found, self.layout, self.targets, frozenset(zeros), balanced,
            self.job.detailed,
        )  # fmt: skip

    def data(self, inputs: Any, key: jax.Array) -> list[Any]:
        """Draws the other inputs of the traced function."""
        return jax.tree.leaves(self.job.draw(inputs, key))

    def step(self, gradients: Sequence[Any], leaves: Sequence[Any]) -> list[Any]:
        """Returns the optimizer's first step of stacked leaves; zero for all but parameters."""
        return first_step(self.job, self.rolled, self.tree, self.moves, gradients, leaves)

    def by_leaf(self, vector: Any) -> list[Any]:
        """Returns the slots of every leaf of the variables."""
        parts = []
        for part, group in zip(self.layout.leaves(vector), self.rolled.groups, strict=True):
            whole = len(group) > 1 and np.ndim(part) == 0
            parts.append([part] * len(group) if whole else part)
        return self.rolled.unstack(parts)


_plans: OrderedDict[Any, tuple[Plan, Sequence[Any]]] = OrderedDict()


def plan_of(job: Job, params: Any, inputs: Any, key: jax.Array) -> tuple[Plan, Sequence[Any]]:
    """Traces a model and finds its layers, or remembers them.

    Returns:
        The plan, and the arrays that the model closed over.

    Raises:
        ValueError: No layer was found, or the loss is not a real scalar that depends on them.
    """
    leaves, tree = jax.tree.flatten((params, inputs, key))
    known = (job, tree, tuple(jax.typeof(leaf) for leaf in leaves), trace_context())
    if known in _plans:
        _plans.move_to_end(known)
        return _plans[known]
    made = _plan(job, params, inputs, key)
    if not any(isinstance(const, Tracer) for const in made[1]):
        _plans[known] = made
        if len(_plans) > _KEPT:
            _plans.popitem(last=False)
    return made


def _plan(job: Job, params: Any, inputs: Any, key: jax.Array) -> tuple[Plan, Sequence[Any]]:
    drawn, rngs = jax.eval_shape(lambda key: job.draw(inputs, key), key)
    traced = _traced(job, params, drawn, rngs)
    _check_loss(job, traced.unflatten(traced.out_avals), key)
    rolled = roll(traced, job.trainable)
    trainable = [job.trainable[group[0]] for group in rolled.groups]
    zeros = [i for i, group in enumerate(rolled.groups) if {*group} <= {*job.zeros}]
    found = survey(rolled.traced, trainable, zeros)
    _check_found(found, job)
    measured = tuple(layer for layer in found.layers if layer.measured)
    layout = Layout(measured, len(rolled.groups), rolled.loops)
    naming = Naming(tuple(leaf_paths(params)), rolled.groups, layout)
    moves = first_moves_of(job, params)
    plan = Plan(job, jax.tree.structure(params), rolled, found, naming, moves)
    return plan, rolled.traced.consts


def _traced(job: Job, params: Any, drawn: Any, rngs: Any) -> TracedFunction:
    try:
        check_call(job.apply_fn.fn, drawn, **({"rngs": rngs} if rngs else {}))
        return trace(job.run, params, drawn, rngs)
    except Exception as error:
        if _are_single_integers(jax.tree.leaves(drawn)):
            error.add_note(
                "dummy_input holds single numbers: for inputs of a shape pass jnp.ones(shape)"
            )
        if type(error).__name__ != "InvalidRngError":  # Flax's; it need not be installed
            raise
        name = describe_call(job.apply_fn)
        raise ValueError(
            f"{name} needs random keys that it was not given ({error}); pass rngs=('dropout',) "
            "with the names it asks for, or take a key among the inputs and hand it on"
        ) from error


def _are_single_integers(leaves: Sequence[Any]) -> bool:
    """Returns whether inputs may be a shape that was given in place of an array."""
    single = [x.shape == () and np.issubdtype(x.dtype, np.integer) for x in leaves]
    return bool(single) and all(single)


def _check_loss(job: Job, output: Any, key: jax.Array) -> None:
    """Raises ValueError unless the loss is a real scalar that depends on the output."""
    with explaining_pairs(output, job.apply_fn, "pass has_aux=True"):
        loss = trace(lambda out, key: call_loss(job.dummy_loss, out, key), output, key)
    reached = set(loss.jaxpr.invars[: len(jax.tree.leaves(output))])
    for equation in loss.jaxpr.eqns:
        if any(not isinstance(v, jex.Literal) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    (result,) = loss.jaxpr.outvars
    if isinstance(result, jex.Literal) or result not in reached:
        raise ValueError(
            f"dummy_loss does not depend on the output of {describe_call(job.apply_fn)}; "
            "compute it from its first argument"
        )


def _check_found(found: Survey, job: Job) -> None:
    if not found.reached:
        raise ValueError(
            f"the output of {describe_call(job.apply_fn)} depends on no parameter; "
            "apply_fn must compute it from its first argument"
        )
    check_layers(found.layers, job.apply_fn)
