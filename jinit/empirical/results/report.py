"""The report of a calibration: a row a layer, as a table and as plain data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.core import Tracer

from jinit._extras import require
from jinit._plain import PlainData
from jinit._tables import format_number, format_table, printable
from jinit.empirical.layer_names import Named
from jinit.empirical.measuring.passes import Statistics
from jinit.empirical.results.notes import not_tuned, note_on
from jinit.empirical.scales import log_mean
from jinit.empirical.solve import Findings
from jinit.empirical.traced_model import TracedModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LayerRow", "Report", "build_report", "draw_quantity"]


@dataclass(frozen=True)
class LayerRow:
    """One layer, or one iteration of a layer in a loop; sizes are geometric means over keys.

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
        dead: The fraction of units that no gradient reaches, after rescaling.
        mean: The output's mean in units of its RMS, after rescaling; None unless ``verbose``.
        note: Why the layer was not rescaled, or what is special about it.
        joined: The leaves that meet the input joined to ``path``, and take the same scale.
    """

    path: str
    kind: str
    activation_before: float
    activation_after: float
    gradient_before: float | None
    gradient_after: float | None
    update_before: float
    update_after: float
    dead: float = 0.0
    mean: float | None = None
    note: str = ""
    joined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report(PlainData):
    """What a calibration did to every layer.

    Attributes:
        rows: The layers in evaluation order.
        not_tuned: By path, why a layer was left as it was.
        shared: By the path of a leaf with several uses, the residual: the largest ratio by which
            the activation of one of them misses the target, upwards or downwards.
        unused: The leaves that no output depends on.
        null: The layers without output, without a gradient at their input or of all their
            leaves, or without update; and the leaves without gradient. A gradient that is 0 but
            for rounding is none: one that another rounding of the parameters changes altogether.
        missing: By path, which of ``output``, ``gradient`` and ``update`` these have not.
        dead: By path, the fraction of a layer's units that no gradient reaches, where it is not 0.
        zero: The leaves that hold nothing but zeros; where one is a weight, gradients were
            measured as if it were random.
        growth: What the multipliers were divided by; None where a unit step is a layer's own.
        leaf_gradients: By path, the RMS of the gradient of a leaf, as the optimizer sees it after
            rescaling; empty unless ``verbose``.
        members: Of a calibration that was mapped, the report of every member; the other fields
            then hold what all of them do, each path behind its member's number.
    """

    rows: tuple[LayerRow, ...]
    not_tuned: dict[str, str] = field(default_factory=dict)
    shared: dict[str, float] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    null: tuple[str, ...] = ()
    dead: dict[str, float] = field(default_factory=dict)
    zero: tuple[str, ...] = ()
    growth: float | None = None
    leaf_gradients: dict[str, float] = field(default_factory=dict)
    members: tuple["Report", ...] = ()
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def plot(self) -> "Figure":
        """Draws the three quantities over the layers, before and after; needs matplotlib."""
        require("plot", "matplotlib")
        return _plot(self)

    def __str__(self) -> str:
        if self.members:
            return "\n".join(f"member {n}:\n{one}" for n, one in enumerate(self.members))
        columns = [
            "layer", "kind", ">activation", ">→", ">gradient", ">→", ">update", ">→", "note",
        ]  # fmt: skip
        lines = [format_table(columns, [_cells(row) for row in self.rows], width=200)]
        if self.leaf_gradients:
            lines.append(self._details())
        shown = {row.path.partition("[")[0] for row in self.rows}
        hidden = [f"{path} ({why})" for path, why in self.not_tuned.items() if path not in shown]
        uses = [f"{path} (up to {ratio:.3g}x off)" for path, ratio in self.shared.items()]
        missing = [f"{path} (no {' or '.join(what)})" for path, what in self.missing.items()]
        dead = [f"{path} ({fraction:.0%})" for path, fraction in self.dead.items()]
        lists = {
            "not tuned": hidden,
            "shared by several uses, whose geometric mean is at the target": uses,
            "unused parameters": self.unused,
            "without output, gradient or update": missing,
            "dead units": dead,
        }
        if self.rows and all(math.isnan(row.activation_before) for row in self.rows):
            lines.append("nothing was measured: the parameters are shapes")
        elif self.growth is not None:
            lines.append(
                f"a unit step of all layers at once changes an output by {self.growth:.3g} times "
                "its RMS in the geometric mean; the multipliers are divided by it"
            )
        lines += [f"{title}: {', '.join(items)}" for title, items in lists.items() if items]
        lines += self._legend()
        return printable("\n".join(lines))

    def _legend(self) -> list[str]:
        """Says what the words mean that this report uses."""
        used = {*self.not_tuned.values(), *(row.note for row in self.rows)}
        used |= {f"no {name}" for names in self.missing.values() for name in names}
        return [f"{word}: {meaning}" for word, meaning in _LEGEND.items() if word in used]

    def _details(self) -> str:
        """Tables what only ``verbose`` measures."""
        means = [[row.path, f"{row.mean:+.1%}"] for row in self.rows if row.mean is not None]
        slopes = [[path, format_number(size)] for path, size in self.leaf_gradients.items()]
        return "\n".join(
            (
                format_table(["layer", ">mean / RMS of the output"], means),
                format_table(["parameter", ">gradient"], slopes),
            )
        )

    __repr__ = __str__


_LEGEND = {
    "a gain": (
        "multiplies activations element by element, as the scale of a norm does; it keeps its size"
    ),
    "a bias on its own": "goes with no weight, as the bias of a norm; it keeps its size",
    "no output": "the layer's output is 0 for every input",
    "no gradient": (
        "the loss's gradient is 0, or rounding, at the layer's input or at its parameters"
    ),
    "no update": "a step of its parameters leaves the layer's output as it is",
}


def _cells(row: LayerRow) -> list[str]:
    numbers = (
        row.activation_before, row.activation_after, row.gradient_before, row.gradient_after,
        row.update_before, row.update_after,
    )  # fmt: skip
    return [row.path, row.kind, *(format_number(number) for number in numbers), row.note]


def build_report(findings: Findings) -> Report:
    """Builds the report on the host.

    Raises:
        TypeError: The findings are traced, so that they have no values yet.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(findings)):
        raise TypeError("the report needs values: return the Calibration from the jitted function")
    model, names = findings.model, findings.model.names
    # one number a statistic or a slot, in the order of the layout; names says whose each is
    before, after = (_sizes(jax.device_get(s)) for s in (findings.before, findings.after))
    notes = [note_on(named, model) for named in names.ordered]
    rows = tuple(
        _row(named, before, after, note, model)
        for named, note in zip(names.ordered, notes, strict=True)
    )
    missing = _missing(findings, rows)
    return Report(
        rows=rows,
        not_tuned=not_tuned(model, notes),
        shared=_residuals(names.ordered, after["activation"] / model.targets),
        unused=tuple(
            names.paths[leaf] for number in model.found.unused for leaf in names.groups[number]
        ),
        null=tuple(missing),
        missing=missing,
        dead={row.path: row.dead for row in rows if 0 < row.dead < 1},
        zero=tuple(
            names.paths[leaf] for leaf in model.request.zeros if model.request.trainable[leaf]
        ),
        growth=float(findings.growth) if model.request.step == "network" else None,
        leaf_gradients=_leaf_gradients(model, after["leaf_gradient"])
        if model.request.detailed
        else {},
    )


def _sizes(statistics: Statistics) -> dict[str, np.ndarray]:
    """Averages over the keys on which a layer was reached: in a branch not taken all is 0."""
    found = {name: np.asarray(v, np.float64) for name, v in statistics._asdict().items()}
    sizes = {
        name: _typical(found[name])
        for name in ("activation", "gradient", "update", "leaf_gradient")
    }
    return {**sizes, "dead": found["dead"].min(0), "mean": found["mean"].mean(0)}


def _typical(size: np.ndarray) -> np.ndarray:
    """Returns the geometric mean of an RMS, as scales are found; what is not finite stays so."""
    logs, live = log_mean(size)
    return np.where(np.isfinite(size).all(0), np.exp(logs) * live, size.sum(0))


def _missing(findings: Findings, rows: Sequence[LayerRow]) -> dict[str, tuple[str, ...]]:
    """Says of every layer and leaf that lacks one of the three quantities, which."""
    model, null = findings.model, np.asarray(findings.null)
    uses = model.solver.moved
    true = np.bincount(uses.statistic, ~null[uses.slot], minlength=model.layout.size)
    missing: dict[str, tuple[str, ...]] = {}
    for named, row in zip(model.names.ordered, rows, strict=True):
        unreached = row.gradient_after == 0 or true[named.statistic] == 0
        lacks = {
            "output": row.activation_after == 0,
            "gradient": unreached,
            "update": row.update_after == 0,
        }
        if any(lacks.values()):
            missing.setdefault(row.path, tuple(name for name, lack in lacks.items() if lack))
    parts = model.by_leaf(null)
    for leaf in model.names.used:
        if np.all(parts[leaf]):
            missing.setdefault(model.names.paths[leaf] or ".", ("gradient",))
    return missing


def _leaf_gradients(model: TracedModel, sizes: np.ndarray) -> dict[str, float]:
    """Names the gradients; a leaf with several slices has their RMS."""
    paths, parts = model.names.paths, model.by_leaf(sizes)
    return {
        paths[leaf] or ".": float(np.sqrt(np.mean(np.square(parts[leaf]))))
        for leaf in model.names.used
    }


def _row(named: Named, before: Any, after: Any, note: str, model: TracedModel) -> LayerRow:
    numbers: dict[str, Any] = {}
    for name in ("activation", "gradient", "update"):
        known = name != "gradient" or named.layer.differentiable
        for when, sizes in (("before", before), ("after", after)):
            numbers[f"{name}_{when}"] = float(sizes[name][named.statistic]) if known else None
    dead = float(after["dead"][named.statistic])
    mean = float(after["mean"][named.statistic]) if model.request.detailed else None
    return LayerRow(
        named.label, named.layer.kind, dead=dead, mean=mean, note=note,
        joined=model.names.joined_paths(named), **numbers,
    )  # fmt: skip


def _residuals(ordered: Sequence[Named], ratios: np.ndarray) -> dict[str, float]:
    """Returns by shared leaf how far off its target the farthest of its uses is."""
    residuals: dict[str, float] = {}
    for named in ordered:
        ratio = float(ratios[named.statistic])
        if named.layer.shared and ratio > 0:
            residuals[named.path] = max(residuals.get(named.path, 1.0), ratio, 1 / ratio)
    return residuals


_TITLES = {
    "activation": "activation RMS",
    "gradient": "gradient RMS at the input",
    "update": "update RMS of a unit step",
}


def draw_quantity(axes: "Axes", report: Report, quantity: str) -> None:
    """Draws one quantity of every layer, before and after, on a logarithmic axis."""
    from matplotlib.ticker import MaxNLocator

    for when, color in (("before", "0.6"), ("after", "C0")):
        values: list[Any] = [getattr(row, f"{quantity}_{when}") for row in report.rows]
        heights = np.array([v if v else np.nan for v in values], float)
        axes.plot(np.arange(1, len(heights) + 1), heights, "o-", ms=4, label=when, color=color)
    axes.axhline(1.0, color="0.3", lw=0.8, ls=":")
    axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_title(_TITLES[quantity])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _plot(report: Report) -> "Figure":
    """Draws activation, gradient and update side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 3), _TITLES, strict=True):
        draw_quantity(axes, report, quantity)
    figure.axes[0].legend()
    return figure
