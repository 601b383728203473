"""The figure of a coordinate check."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jinit.inspect.coordinates import CoordCheck

__all__ = ["plot_check"]

_COLUMNS = 6
_NAMED = 12  # layers that a legend has room for


def plot_check(check: "CoordCheck") -> "Figure":
    """Draws activations above updates: a column a step, a line a layer, both axes logarithmic."""
    from matplotlib.figure import Figure

    steps = _shown(check.steps)
    figure = Figure(figsize=(2.6 * len(steps) + 1.2, 5.4), layout="constrained")
    panels = figure.subplots(2, len(steps), sharex=True, sharey="row", squeeze=False)
    for column, step in enumerate(steps):
        _draw(panels[0, column], check, "activation", step)
        panels[0, column].set_title(f"step {step}")
        _draw(panels[1, column], check, "update", step)
        panels[1, column].set_xlabel("width")
    panels[0, 0].tick_params(labelbottom=True)
    panels[1, 1].tick_params(labelleft=True)
    _finish_heights(panels[0, 0], "activation RMS")
    _finish_heights(panels[1, 1], "update RMS")
    _say_which(figure, panels, check)
    return figure


def _shown(steps: int) -> list[int]:
    """Chooses steps from 0 to the last, evenly."""
    return sorted({round(step) for step in np.linspace(0, steps, min(steps + 1, _COLUMNS))})


def _draw(axes: "Axes", check: "CoordCheck", quantity: Any, step: int) -> None:
    for fit, color in zip(check.fits, _colors(check), strict=True):
        heights = np.array(check.curve(fit.path, quantity, step))
        heights[heights == 0] = np.nan  # a logarithmic axis has no place for it
        axes.plot(check.widths, heights, "o-", ms=3.5, lw=1.2, color=color, label=fit.path)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(check.widths, [str(width) for width in check.widths], fontsize=8)
    axes.minorticks_off()


def _finish_heights(axes: "Axes", label: str) -> None:
    """Shows a decade at least, so that what is flat looks flat, in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_ylabel(label)
    low, high = axes.get_ylim()
    margin = max(1.0, (10 * low / high) ** 0.5)
    axes.set_ylim(low / margin, high * margin)
    if high * margin < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _colors(check: "CoordCheck") -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.92, len(check.fits)))


def _say_which(figure: "Figure", panels: Any, check: "CoordCheck") -> None:
    """Names the layers where the updates of step 0, which are none, would be drawn."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.ticker import MaxNLocator

    empty = panels[1, 0]
    empty.set_axis_off()
    if len(check.fits) <= _NAMED:
        handles, labels = panels[0, 0].get_legend_handles_labels()
        empty.legend(handles, labels, loc="center", fontsize=7, frameon=False)
        return
    colors = ScalarMappable(Normalize(1, len(check.fits)), ListedColormap(_colors(check)))
    whole = MaxNLocator(integer=True)
    figure.colorbar(colors, ax=empty, location="left", label="layer", fraction=0.3, ticks=whole)
