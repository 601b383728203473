"""The result of a coordinate check: curves over steps and widths, and their exponents."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jinit._extras import require
from jinit._plain import PlainData
from jinit._tables import format_number, format_table, printable
from jinit.inspect.training import Sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CoordCheck", "CoordFit", "CoordRow", "build_check"]

Trend = Literal["grows", "shrinks", "steady", "zero"]


@dataclass(frozen=True)
class CoordRow:
    """One layer of one width at one step.

    Attributes:
        width: The width.
        step: The number of training steps taken.
        path: The layer, by its leaf.
        activation: RMS of its output before the nonlinearity.
        update: RMS of that output's change since step 0.
    """

    width: int
    step: int
    path: str
    activation: float
    update: float


@dataclass(frozen=True)
class CoordFit:
    """How one layer depends on width at the last step.

    Attributes:
        path: The layer.
        activation_exponent: The slope of log activation against log width, by least squares;
            None where one is zero.
        update_exponent: Likewise of the update.
        activation: ``steady`` within the tolerance of exponent 0, ``grows`` or ``shrinks``;
            ``zero`` where there is no exponent.
        update: Likewise.
    """

    path: str
    activation_exponent: float | None
    update_exponent: float | None
    activation: Trend
    update: Trend

    @property
    def steady(self) -> bool:
        """Whether activation and update are."""
        return self.activation == self.update == "steady"

    @property
    def verdict(self) -> str:
        """What is not steady, in words."""
        trends = {"activation": self.activation, "update": self.update}
        found = [f"{name} {trend}" for name, trend in trends.items() if trend != "steady"]
        return ", ".join(found).replace("zero", "is zero") or "steady"


@dataclass(frozen=True)
class CoordCheck(PlainData):
    """Sizes of activations and updates over training steps and widths.

    Attributes:
        rows: Every measurement, by width, step and layer.
        fits: Every layer's exponents of width at the last step.
        tolerance: How far from 0 an exponent may be where the layer is called steady.
        opaque: The layers inside operations that are not entered, which were not measured.
    """

    rows: tuple[CoordRow, ...]
    fits: tuple[CoordFit, ...]
    tolerance: float
    opaque: tuple[str, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths."""
        return tuple(dict.fromkeys(row.width for row in self.rows))

    @property
    def steps(self) -> int:
        """The number of training steps."""
        return self.rows[-1].step

    @property
    def steady(self) -> bool:
        """Whether every layer is."""
        return all(fit.steady for fit in self.fits)

    def curve(self, path: str, quantity: Literal["activation", "update"], step: int) -> list[float]:
        """Returns one layer's activation or update at a step, one number a width."""
        return [getattr(r, quantity) for r in self.rows if r.path == path and r.step == step]

    def plot(self) -> "Figure":
        """Draws activation and update against width, a column a step; needs matplotlib."""
        require("plot", "matplotlib")
        return _plot(self)

    def __str__(self) -> str:
        first, last = self.widths[0], self.widths[-1]
        columns = [
            *("layer", f">activation at {first}", f">at {last}", ">exponent"),
            *(f">update at {first}", f">at {last}", ">exponent", "verdict"),
        ]
        title = (
            f"RMS at step {self.steps} and its exponent of width over {len(self.widths)} widths; "
            f"steady: within {self.tolerance:g} of 0"
        )
        lines = [title, format_table(columns, [self._cells(fit) for fit in self.fits], width=200)]
        if self.opaque:
            lines.append(f"not measured: {', '.join(self.opaque)}")
        return printable("\n".join(lines))

    __repr__ = __str__

    def _cells(self, fit: CoordFit) -> list[str]:
        activation = self.curve(fit.path, "activation", self.steps)
        update = self.curve(fit.path, "update", self.steps)
        return [
            *(fit.path, format_number(activation[0]), format_number(activation[-1])),
            *(_signed(fit.activation_exponent), format_number(update[0])),
            *(format_number(update[-1]), _signed(fit.update_exponent), fit.verdict),
        ]


def _signed(exponent: float | None) -> str:
    return "-" if exponent is None else f"{round(exponent, 2) + 0.0:+.2f}"  # no -0.00


def build_check(found: Mapping[int, Sizes], tolerance: float) -> CoordCheck:
    """Builds the result from the RMS of every width, whose layers are the same."""
    widths = list(found)
    labels, opaque = found[widths[0]].labels, found[widths[0]].opaque
    activation, update = (
        np.asarray([getattr(found[width], name) for width in widths], np.float64)
        for name in ("activation", "update")
    )
    rows = [
        CoordRow(width, step, path, float(activation[w, step, n]), float(update[w, step, n]))
        for w, width in enumerate(widths)
        for step in range(activation.shape[1])
        for n, path in enumerate(labels)
    ]
    fits = [
        _fit(path, widths, activation[:, -1, n], update[:, -1, n], tolerance)
        for n, path in enumerate(labels)
    ]
    return CoordCheck(tuple(rows), tuple(fits), tolerance, opaque)


def _fit(
    path: str, widths: Sequence[int], activation: np.ndarray, update: np.ndarray, tolerance: float
) -> CoordFit:
    of_activation, of_update = _exponent(widths, activation), _exponent(widths, update)
    trends = _trend(of_activation, tolerance), _trend(of_update, tolerance)
    return CoordFit(path, of_activation, of_update, *trends)


def _exponent(widths: Sequence[int], values: np.ndarray) -> float | None:
    """Fits log value against log width by least squares."""
    if np.any(values == 0):
        return None
    x, y = np.log(widths), np.log(values)
    x = x - x.mean()
    return math.fsum(x * y) / math.fsum(x * x)


def _trend(exponent: float | None, tolerance: float) -> Trend:
    if exponent is None:
        return "zero"
    if abs(exponent) <= tolerance:
        return "steady"
    return "grows" if exponent > 0 else "shrinks"


_COLUMNS = 6
_NAMED = 12  # layers that a legend has room for


def _plot(check: CoordCheck) -> "Figure":
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


def _draw(axes: "Axes", check: CoordCheck, quantity: Any, step: int) -> None:
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


def _colors(check: CoordCheck) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.92, len(check.fits)))


def _say_which(figure: "Figure", panels: Any, check: CoordCheck) -> None:
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
