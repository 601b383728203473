"""The figure of a calibration."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jinit.empirical.report import Report

__all__ = ["draw_quantity", "plot_report"]

_TITLES = {
    "activation": "activation RMS",
    "gradient": "gradient RMS at the input",
    "update": "update RMS of a unit step",
}


def draw_quantity(axes: "Axes", report: "Report", quantity: str) -> None:
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


def plot_report(report: "Report") -> "Figure":
    """Draws activation, gradient and update side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, 3), _TITLES, strict=True):
        draw_quantity(axes, report, quantity)
    figure.axes[0].legend()
    return figure
