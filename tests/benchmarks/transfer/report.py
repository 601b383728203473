"""The tables and the figure."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jinit._tables import format_number, format_table
from tests.benchmarks.transfer.curves import GRID, Curve, Rule, find, rules_of
from tests.benchmarks.transfer.families import FAMILIES, Size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "tables"]

DRAWN = "m / growth"


def tables(curves: Sequence[Curve]) -> str:
    """A table over all families, and one for each."""
    shown = [family for family in FAMILIES if any(c.family == family for c in curves)]
    return "\n".join([_summary(curves, shown), *(_details(curves, family) for family in shown)])


def _summary(curves: Sequence[Curve], families: Sequence[str]) -> str:
    columns = [
        "family", "rule", ">best rates", ">widths", ">depths", ">all", ">loss at best",
        ">loss at smallest's",
    ]  # fmt: skip
    rows = [
        [FAMILIES[family].title, rule.label, *_summary_cells(curves, family, rule)]
        for family in families
        for rule in rules_of(family)
    ]
    title = (
        "Transfer: the largest best learning rate over the smallest, over widths, depths and all.\n"
        "Losses, at a network's own best rate and at the smallest network's, over the best that\n"
        "any default reaches at its own best rate: geometric mean over the networks, and the worst."
    )
    return format_table(columns, rows, title=title, width=160)


def _summary_cells(curves: Sequence[Curve], family: str, rule: Rule) -> list[str]:
    of = FAMILIES[family]
    rates, best, moved = {}, [], []
    smallest = find(curves, family, rule.start, of.sizes[0])
    for size in of.sizes:
        curve, default = find(curves, family, rule.start, size), _best_default(curves, family, size)
        if curve is None or smallest is None:
            continue
        if curve.trained:
            rates[size] = rule.best_rate(curve)
        best.append(curve.loss(curve.best) / default)
        moved.append(curve.loss(rule.index(curve, rule.best_rate(smallest))) / default)
    return [
        " to ".join(format_number(end(rates.values())) for end in (min, max)) if rates else "-",
        *(_factor(rates, sizes) for sizes in (of.widths, of.depths, of.sizes)),
        *(_mean_and_worst(ratios) for ratios in (best, moved)),
    ]


def _factor(rates: dict[Size, float], sizes: Sequence[Size]) -> str:
    values = [rates[size] for size in sizes if size in rates]
    return f"{max(values) / min(values):.2f}" if values else "-"


def _mean_and_worst(ratios: Sequence[float]) -> str:
    return f"{math.exp(np.mean(np.log(ratios))):.2f}, {max(ratios):.2f}" if ratios else "-"


def _best_default(curves: Sequence[Curve], family: str, size: Size) -> float:
    """The least loss that any default reaches at any learning rate."""
    found = [find(curves, family, start, size) for start in FAMILIES[family].defaults]
    return min((c.loss(c.best) for c in found if c is not None), default=math.nan)


def _details(curves: Sequence[Curve], family: str) -> str:
    columns = ["rule", ">width", ">depth", ">growth", ">best rate", ">loss", ">at smallest's rate"]
    rows = []
    for rule in rules_of(family):
        smallest = find(curves, family, rule.start, FAMILIES[family].sizes[0])
        for size in FAMILIES[family].sizes:
            curve = find(curves, family, rule.start, size)
            if curve is None or smallest is None:
                continue
            moved = curve.loss(rule.index(curve, rule.best_rate(smallest)))
            rate = rule.best_rate(curve) if curve.trained else None
            numbers = (curve.growth, rate, curve.loss(curve.best), moved)
            rows.append([rule.label, *map(str, size), *map(format_number, numbers)])
    return format_table(columns, rows, title=FAMILIES[family].title)


def draw(curves: Sequence[Curve]) -> "Figure":
    """Draws loss over learning rate: a row a family, widths on the left and depths on the right."""
    from matplotlib.figure import Figure

    shown = [family for family in FAMILIES if any(c.family == family for c in curves)]
    figure = Figure(figsize=(13, 2.9 * len(shown)), layout="constrained", dpi=100)
    grid = figure.subplots(len(shown), 4, sharey="row", squeeze=False)
    for row, family in zip(grid, shown, strict=True):
        default = FAMILIES[family].defaults[-1]
        rules = [rule for rule in rules_of(family) if rule.label == DRAWN or default == rule.start]
        for half, varied in ((row[:2], "width"), (row[2:], "depth")):
            for axes, rule in zip(half, rules, strict=True):
                _draw_panel(axes, curves, family, rule, varied)
            half[1].legend(title=varied, fontsize=7, title_fontsize=8)
        _share_span(row)
        low, high = row[0].get_ylim()
        row[0].set_yscale("log" if high > 10 * low else "linear")
        row[0].set_ylabel(f"{FAMILIES[family].title}\nfinal training loss")
    for axes in grid[-1]:
        axes.set_xlabel("learning rate")
    return figure


def _draw_panel(
    axes: "Axes", curves: Sequence[Curve], family: str, rule: Rule, varied: str
) -> None:
    from matplotlib import colormaps

    sizes = getattr(FAMILIES[family], f"{varied}s")
    found = [find(curves, family, rule.start, size) for size in sizes]
    for number, curve in enumerate(curve for curve in found if curve is not None):
        color = colormaps["viridis"](0.9 * number / (len(sizes) - 1))
        rates = [GRID ** (index + rule.shift(curve)) for index in curve.indices]
        losses = [curve.loss(index) for index in curve.indices]
        axes.plot(rates, losses, "-", lw=1.4, color=color, label=str(getattr(curve, varied)))
        if curve.trained:
            best = np.exp(np.interp(curve.vertex, curve.indices, np.log(losses)))
            axes.plot(rule.best_rate(curve), best, "o", ms=6, color=color)
    held = f"depth {sizes[0][1]}" if varied == "width" else f"width {sizes[0][0]}"
    name = f"jinit, {rule.label}" if rule.start == "jinit" else f"{rule.label}, plain Adam"
    axes.set_title(f"{name} ({held})", fontsize=10)
    axes.set(xscale="log", yscale="log")


def _share_span(row: Sequence["Axes"]) -> None:
    """Gives the panels of a row equally many decades, so that what moves can be compared."""
    from matplotlib.ticker import NullFormatter

    limits = [np.log10(axes.get_xlim()) for axes in row]
    half = max(high - low for low, high in limits) / 2
    for axes, ends in zip(row, limits, strict=True):
        axes.set_xlim(10 ** (np.mean(ends) - half), 10 ** (np.mean(ends) + half))
        axes.xaxis.set_minor_formatter(NullFormatter())
