"""What of a calibration's findings outlives the process that measured them."""

import contextlib
import functools
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jinit.empirical.explicit.normed_apply import NormedApply
from jinit.empirical.results.findings_report import report_of
from jinit.empirical.results.report import Report
from jinit.empirical.solve import Findings
from jinit.empirical.traced_model import TracedModel
from jinit.empirical.user_functions import describe_call
from jinit.modules.model import call_itself

__all__ = ["Facts", "Saved", "applied_with", "saved"]


@dataclass(frozen=True, eq=False)
class Facts:
    """What is not an array; compared by identity, as a traced model is.

    Attributes:
        report: The report.
        name: What the function that was given is called.
        function: It, pickled; None if it could not be.
        wrapped: Whether explicit mode applies the scales around it.
        inside: Whether the variables hold these scales.
        collection: The top-level entry that holds the parameters, where the user said so.
        parameters: The paths of the parameters, where the user said which they are.
        alone: Whether the model was given without a function, since it calls itself.
        given: The function, where the user gave it again.
    """

    report: Report
    name: str
    function: bytes | None
    wrapped: bool
    inside: bool
    collection: str | None = None
    parameters: tuple[str, ...] | None = None
    alone: bool = False
    given: Callable[..., Any] | None = None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["growth"], meta_fields=["facts"])
@dataclass(frozen=True)
class Saved:
    """Stands in for ``Findings`` once a calibration has been pickled, or read from a file.

    Attributes:
        growth: What the multipliers were divided by.
        facts: The rest.
    """

    growth: Any
    facts: Facts


def saved(findings: Findings | Saved) -> Saved:
    """Reduces findings to what can be pickled.

    Raises:
        TypeError: They have no report.
    """
    if isinstance(findings, Saved):
        return findings
    facts = _facts(findings.model, report_of(findings), _pickled(findings.model.request.call.fn))
    return Saved(jax.device_get(findings.growth), facts)


def _facts(model: TracedModel, report: Any, function: bytes | None) -> Facts:
    request = model.request
    flags = zip(model.names.paths, request.trainable, strict=True)
    return Facts(
        report=report,
        name=describe_call(request.apply_fn),
        function=function,
        wrapped=request.mode == "explicit" and not request.modules,
        inside=request.scales_inside,
        collection=request.collection if request.explained else None,
        parameters=tuple(path for path, flag in flags if flag) if request.explained else None,
        alone=request.call.fn is call_itself,
    )


def _pickled(fn: Any) -> bytes | None:
    """Pickles a function; by cloudpickle, which takes any, where the program has imported it."""
    picklers: tuple[Any, ...] = (pickle, sys.modules.get("cloudpickle"))
    for pickler in picklers:
        with contextlib.suppress(Exception):  # whatever the parts of a function raise
            return pickler.dumps(fn)
    return None


def applied_with(findings: Findings | Saved, scales: Any) -> Callable[..., Any]:
    """Returns the function to train.

    Raises:
        ValueError: It is neither there nor survived pickling.
    """
    if not isinstance(findings, Saved):
        return _wrapped(findings.model.request.call.fn, _facts(findings.model, None, None), scales)
    facts = findings.facts
    if facts.given is not None:
        return _wrapped(facts.given, facts, scales)
    if facts.function is None and facts.alone:
        raise ValueError(
            f"{facts.name} is not in this calibration: a file holds the arrays of a module; hand "
            "one that was constructed alike to Calibration.load, as like="
        )
    if facts.function is None:
        around = (
            ", wrapped by jinit.empirical.NormedApply(apply_fn, scales)" if facts.wrapped else ""
        )
        raise ValueError(
            f"{facts.name} is not in this calibration: a file holds no function, and pickle takes "
            "no lambda and no function inside another one; use the function that was calibrated"
            f"{around}, hand it to Calibration.load, or import cloudpickle before the calibration "
            "is pickled"
        )
    return _wrapped(pickle.loads(facts.function), facts, scales)


def _wrapped(fn: Any, facts: Facts, scales: Any) -> Callable[..., Any]:
    if not facts.wrapped:
        return fn
    return NormedApply(fn, None if facts.inside else scales, facts.collection, facts.parameters)
