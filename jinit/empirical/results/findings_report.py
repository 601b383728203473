"""The report of a calibration that was mapped, as ``jax.vmap`` does: one of all its members."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jinit.empirical.results.report import LayerRow, Report, build_report
from jinit.empirical.solve import Findings

__all__ = ["report_of"]


def report_of(findings: Findings) -> Report:
    """Builds the report of one calibration, or of all that were computed at once."""
    activation = findings.before.activation
    if isinstance(activation, jax.ShapeDtypeStruct):
        return build_report(jax.tree.map(_unknown, findings))
    if isinstance(activation, Tracer) or np.ndim(activation) == 2:
        return build_report(findings)
    values = jax.device_get(findings)
    members = [
        report_of(jax.tree.map(lambda x, n=number: x[n], values))
        for number in range(len(activation))
    ]
    return _joined(members)


def _unknown(shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """Stands for what was not measured."""
    floating = np.issubdtype(shape.dtype, np.floating)
    return np.full(shape.shape, np.nan if floating else 0, shape.dtype)


def _joined(members: Sequence[Report]) -> Report:
    names = [f.name for f in dataclasses.fields(Report) if f.name not in ("members", "growth")]
    found = {name: [getattr(member, name) for member in members] for name in names}
    merged = {name: _merged(several) for name, several in found.items()}
    return Report(**merged, members=tuple(members))


def _merged(several: Sequence[Any]) -> Any:
    """Merges dicts by path, or tuples of paths or of rows."""
    numbered = [
        (f"{number}:", entry)
        for number, entries in enumerate(several)
        for entry in (entries.items() if isinstance(entries, dict) else entries)
    ]
    if isinstance(several[0], dict):
        return {_behind(number, path): value for number, (path, value) in numbered}
    return tuple(_behind(number, entry) for number, entry in numbered)


def _behind(number: str, entry: Any) -> Any:
    if isinstance(entry, LayerRow):
        return dataclasses.replace(entry, path=number + entry.path)
    return number + entry
