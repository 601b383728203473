"""A traced model: its layers, what they are called, and what is to be measured of them."""

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jinit._trees import leaf_paths
from jinit.empirical.arguments import check_survey
from jinit.empirical.explicit.wrapped_modules import frozen_outside
from jinit.empirical.first_step import FirstStep, first_step
from jinit.empirical.layer_names import LayerNames
from jinit.empirical.measuring.meter import Meter
from jinit.empirical.measuring.rounding import rounding_unit
from jinit.empirical.measuring.vector_layout import VectorLayout
from jinit.empirical.request import Problem, Request
from jinit.empirical.scales import Solver
from jinit.empirical.targets import target_of
from jinit.empirical.user_functions import check_loss_depends, trace_model
from jinit.layers import Survey, survey
from jinit.tracing import Rolled, roll, trace_context

__all__ = ["TracedModel", "traced_model"]

_KEPT = 64  # traced models; the least recently used is dropped


@dataclass(frozen=True, eq=False)
class TracedModel:
    """A traced model. It is compared by identity, and kept: programs are compiled for it.

    Attributes:
        request: What it was traced for.
        rolled: The traced function, equal layers as one loop.
        found: Its layers.
        names: What they and their leaves are called.
        frozen: For every leaf of the variables whether it is left as it is.
        first_step: The first step of the optimizer that moves the stacked leaves.
    """

    request: Request
    rolled: Rolled
    found: Survey
    names: LayerNames
    frozen: tuple[bool, ...]
    first_step: FirstStep

    @property
    def layout(self) -> VectorLayout:
        """Where the numbers of layers and leaves stand."""
        return self.names.layout

    @functools.cached_property
    def solver(self) -> Solver:
        """What statistics mean for leaves."""
        return Solver(self.layout, self.names.slots_of(self.frozen))

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """The RMS of every output; one a statistic."""
        targets = np.ones(self.layout.size, np.float32)
        for layer, statistic in self.names.infos(self.solver.tuned):
            targets[statistic] = target_of(self.request.target, layer)
        return targets

    @functools.cached_property
    def rounding_unit(self) -> float:
        """What parameters are changed by to find out which gradients are rounding."""
        return rounding_unit(self.rolled.traced.jaxpr)

    def meter(self, consts: Sequence[Any]) -> Meter:
        """Returns what measures the layers, given the arrays that the model closed over."""
        zeros = {
            i for i, group in enumerate(self.rolled.groups) if {*group} & {*self.request.zeros}
        }
        traced = replace(self.rolled.traced, consts=consts)
        balanced = self.request.mode == "explicit"
        return Meter(
            traced, self.found, self.layout, self.targets, frozenset(zeros), balanced,
            self.request.detailed,
        )  # fmt: skip

    def data(self, inputs: Any, key: jax.Array) -> list[Any]:
        """Draws the other inputs of the traced function."""
        return jax.tree.leaves(self.request.draw(inputs, key))

    def by_leaf(self, vector: Any) -> list[Any]:
        """Returns the slots of every leaf of the variables."""
        parts = []
        for part, group in zip(self.layout.leaves(vector), self.rolled.groups, strict=True):
            whole = len(group) > 1 and np.ndim(part) == 0
            parts.append([part] * len(group) if whole else part)
        return self.rolled.unstack(parts)


_models: OrderedDict[Any, tuple[TracedModel, Sequence[Any]]] = OrderedDict()


def traced_model(problem: Problem) -> tuple[TracedModel, Sequence[Any]]:
    """Traces a model and finds its layers, or remembers them.

    Returns:
        The model, and the arrays that its function closed over.

    Raises:
        ValueError: No layer was found, the loss is not a real scalar that depends on them, or a
            wrapped module holds several.
    """
    leaves, tree = jax.tree.flatten((problem.params, problem.inputs, problem.key))
    avals = tuple(jax.typeof(leaf) for leaf in leaves)
    known = (problem.request, tree, avals, trace_context())
    if known in _models:
        _models.move_to_end(known)
        return _models[known]
    made = _traced_model(problem)
    if not any(isinstance(const, Tracer) for const in made[1]):
        _models[known] = made
        if len(_models) > _KEPT:
            _models.popitem(last=False)
    return made


def _traced_model(problem: Problem) -> tuple[TracedModel, Sequence[Any]]:
    request, params = problem.request, problem.params
    drawn, rngs = jax.eval_shape(lambda key: request.draw(problem.inputs, key), problem.key)
    traced = trace_model(request.apply, request.apply_fn, params, drawn, rngs)
    outputs = traced.unflatten(traced.out_avals)
    check_loss_depends(request.dummy_loss, outputs, problem.key, request.apply_fn, request.has_aux)
    rolled = roll(traced, request.trainable)
    trainable = [request.trainable[group[0]] for group in rolled.groups]
    zeros = [i for i, group in enumerate(rolled.groups) if {*group} <= {*request.zeros}]
    found = survey(rolled.traced, trainable, zeros)
    check_survey(found, request.apply_fn)
    measured = tuple(layer for layer in found.layers if layer.measured)
    layout = VectorLayout(measured, len(rolled.groups), rolled.loops)
    names = LayerNames(tuple(leaf_paths(params)), rolled.groups, layout)
    model = TracedModel(
        request,
        rolled,
        found,
        names,
        frozen_outside(request.modules, names, request.frozen),
        first_step(request, rolled, params),
    )
    return model, rolled.traced.consts
