"""The report of a calibration: a row a layer, as a table and as plain data."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.core import Tracer

from jinit._extras import require
from jinit._tables import format_number, format_table
from jinit.empirical.run import Findings
from jinit.empirical.sites import Layer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LayerRow", "Report", "build_report"]

_NULL = 1e-5  # where 1 was the target


@dataclass(frozen=True)
class LayerRow:
    """One layer, or one iteration of a scanned one.

    Attributes:
        path: The leaf that carries the layer's scale, or its first one.
        kind: What the layer is.
        activation_before: RMS of the output before the nonlinearity, as the model was given.
        activation_after: The same after rescaling, on fresh keys.
        gradient_before: RMS of the loss's gradient at the layer's input; None where the input
            is not a float.
        gradient_after: The same after rescaling.
        update_before: RMS of the output's change along the optimizer's unit step.
        update_after: The same after rescaling, the step multiplied by the multipliers.
        note: Why the layer was not rescaled, or what is special about it.
    """

    path: str
    kind: str
    activation_before: float
    activation_after: float
    gradient_before: float | None
    gradient_after: float | None
    update_before: float
    update_after: float
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What a calibration did to every layer.

    Attributes:
        rows: The layers in evaluation order.
        not_tuned: By path, why a layer was left as it was.
        unused: The leaves that no output depends on.
        null: The layers that put out nothing, or whose step changes nothing.
    """

    rows: tuple[LayerRow, ...]
    not_tuned: dict[str, str]
    unused: tuple[str, ...]
    null: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain data."""
        return asdict(self)

    def to_json(self) -> str:
        """Returns the report as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def plot(self) -> "Figure":
        """Draws the three quantities over the layers, before and after; needs matplotlib."""
        require("plot", "matplotlib")
        from jinit.empirical.plots import plot_report

        return plot_report(self)

    def __str__(self) -> str:
        columns = [
            "layer", "kind", ">activation", ">→", ">gradient", ">→", ">update", ">→", "note",
        ]  # fmt: skip
        lines = [format_table(columns, [_cells(row) for row in self.rows], width=200)]
        shown = {row.path.partition("[")[0] for row in self.rows}
        hidden = [f"{path} ({why})" for path, why in self.not_tuned.items() if path not in shown]
        if hidden:
            lines.append(f"not tuned: {', '.join(hidden)}")
        if self.unused:
            lines.append(f"unused parameters: {', '.join(self.unused)}")
        return "\n".join(lines)

    __repr__ = __str__


def _cells(row: LayerRow) -> list[str]:
    numbers = (
        row.activation_before, row.activation_after, row.gradient_before, row.gradient_after,
        row.update_before, row.update_after,
    )  # fmt: skip
    return [row.path, row.kind, *(format_number(number) for number in numbers), row.note]


def build_report(findings: Findings, paths: Sequence[str]) -> Report:
    """Builds the report on the host.

    Raises:
        TypeError: The findings are traced: they have no values yet.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(findings)):
        raise TypeError("the report needs values: return the Calibration from the jitted function")
    before, after = jax.device_get((findings.before, findings.after))
    layers = list(enumerate(findings.found.layers))
    named = [(index, layer, _name(layer, paths)) for index, layer in layers]
    rows = [
        row
        for index, layer, name in named
        if index in before
        for row in _rows(layer, name, before[index], after[index])
    ]
    return Report(
        rows=tuple(rows),
        not_tuned={name: layer.reason for _, layer, name in named if layer.reason},
        unused=tuple(paths[leaf] for leaf in findings.found.unused),
        null=tuple(row.path for row in rows if min(row.activation_after, row.update_after) < _NULL),
    )


def _name(layer: Layer, paths: Sequence[str]) -> str:
    leaf = layer.carrier if layer.carrier is not None else layer.leaves[0][0]
    return paths[leaf] or "."


def _rows(layer: Layer, name: str, before: Any, after: Any) -> Iterator[LayerRow]:
    note = layer.reason or ("shared" if layer.shared else "")
    for place in np.ndindex(*layer.lengths):
        label = name + "".join(f"[{i}]" for i in place)
        yield LayerRow(path=label, kind=layer.kind, note=note, **_numbers(before, after, place))


def _numbers(
    before: dict[str, Any], after: dict[str, Any], place: tuple[int, ...]
) -> dict[str, Any]:
    numbers: dict[str, float | None] = {}
    for name in ("activation", "gradient", "update"):
        for when, statistics in (("before", before), ("after", after)):
            known = name in statistics
            numbers[f"{name}_{when}"] = float(np.sqrt(statistics[name][place])) if known else None
    return numbers
