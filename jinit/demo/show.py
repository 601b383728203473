"""What the demonstration prints and draws."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import jinit
from jinit._tables import format_number, format_table, printable
from jinit.demo.experiments import Outcome
from jinit.demo.training import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "layers_table", "levels_table", "overflow_story", "rates_table", "to_dict"]


def layers_table(calibration: jinit.Calibration) -> str:
    """The table of layers, before and after."""
    title = "RMS of every layer, before → after calibrate (gradient at the layer's input)"
    return printable(f"{title}\n{calibration.report}")


def levels_table(outcomes: Sequence[Outcome]) -> str:
    """Test accuracy and loss scale of every level."""
    columns = ["run", ">test accuracy", ">range", ">final loss", ">skipped", ">loss scale", ">s"]
    return format_table(columns, [_level_row(outcome) for outcome in outcomes], width=140)


def _level_row(outcome: Outcome) -> list[str]:
    run, accuracies = outcome.typical, [run.accuracy for run in outcome.runs]
    return [
        outcome.label,
        f"{outcome.accuracy:.2%}",
        f"{min(accuracies):.2%} to {max(accuracies):.2%}",
        format_number(run.final_loss),
        str(int(np.sum(~run.finite))) if run.scales[0] != 1 else "-",
        f"{run.scales[0]:,.0f} → {run.scales[-1]:,.0f}" if run.scales[0] != 1 else "1",
        f"{sum(run.seconds for run in outcome.runs):.0f}",
    ]


def rates_table(outcomes: Sequence[Outcome]) -> str:
    """Final loss and test accuracy of every initialization at every learning rate."""
    columns = ["initialization", ">learning rate", ">final loss", ">test accuracy", "", ">seconds"]
    rows = [
        [
            outcome.label,
            format_number(run.recipe.learning_rate),
            format_number(run.final_loss),
            f"{run.accuracy:.2%}",
            "best" if run is outcome.best else "",
            f"{run.seconds:.1f}",
        ]
        for outcome in outcomes
        for run in outcome.runs
    ]
    return format_table(columns, rows)


def overflow_story(run: Run) -> str:
    """Tells when a run's loss scale fell and rose."""
    skipped = [int(step) for step in np.flatnonzero(~run.finite)]
    ratios = run.scales[1:] / run.scales[:-1]
    grown = [int(step) + 1 for step in np.flatnonzero(ratios > 1)]
    return printable(
        f"{run.recipe.label}: steps {_some(skipped)} overflowed and were skipped, each halving "
        f"the scale; it doubled again before steps {_some(grown)}."
    )


def _some(steps: Sequence[int], most: int = 12) -> str:
    shown = ", ".join(map(str, steps[:most])) or "none"
    return f"{shown} and {len(steps) - most} more" if len(steps) > most else shown


def to_dict(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Returns every run as plain data."""
    return [
        {
            "label": outcome.label,
            "how": run.recipe.how,
            "depth": run.recipe.depth,
            "opt_level": run.recipe.opt_level,
            "half_dtype": run.recipe.half_dtype,
            "learning_rate": run.recipe.learning_rate,
            "accuracy": run.accuracy,
            "final_loss": run.final_loss,
            "skipped": int(np.sum(~run.finite)),
            "losses": run.losses.tolist(),
            "scales": run.scales.tolist(),
            "seconds": run.seconds,
        }
        for outcome in outcomes
        for run in outcome.runs
    ]


def draw(calibration: jinit.Calibration, outcomes: Sequence[Outcome], deep: bool) -> "Figure":
    """Draws the layers before and after, the loss curves, and the loss scale or the grid."""
    from matplotlib.figure import Figure

    from jinit.empirical.results.report import draw_quantity

    figure = Figure(figsize=(12, 6.8), layout="constrained", dpi=110)
    places = figure.subplot_mosaic("AGU;LLS")
    for place, quantity in (("A", "activation"), ("G", "gradient"), ("U", "update")):
        draw_quantity(places[place], calibration.report, quantity)
    places["A"].legend()
    _draw_losses(places["L"], outcomes, deep)
    if deep:
        _draw_rates(places["S"], outcomes)
    else:
        _draw_scale(places["S"], outcomes[-1].typical)
    return figure


def _smooth(values: np.ndarray, window: int = 21) -> np.ndarray:
    """Averages over the last steps, so that curves of noisy batches can be told apart."""
    totals = np.cumsum(np.insert(values, 0, 0.0))
    starts = np.maximum(np.arange(len(values)) + 1 - window, 0)
    ends = np.arange(len(values)) + 1
    return (totals[ends] - totals[starts]) / (ends - starts)


def _draw_losses(axes: "Axes", outcomes: Sequence[Outcome], deep: bool) -> None:
    for outcome in outcomes:
        run = outcome.best if deep else outcome.typical
        label = outcome.label
        if deep:
            label += f" (learning rate {run.recipe.learning_rate:.2g})"
        axes.plot(_smooth(run.losses), label=label, lw=1.4)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    depth = outcomes[0].typical.recipe.depth
    axes.set_title(f"training loss, {depth} layers without normalization or skips")
    axes.legend(fontsize=8)


def _draw_scale(axes: "Axes", run: Run) -> None:
    axes.step(np.arange(len(run.scales)), run.scales, where="post", color="C3", lw=1.2)
    skipped = np.flatnonzero(~run.finite)
    axes.plot(skipped, run.scales[skipped], "kx", ms=5, label="skipped")
    axes.set_yscale("log", base=2)
    axes.set_xlabel("step")
    axes.set_title("loss scale in float16, started too high")
    axes.legend(fontsize=8)


def _draw_rates(axes: "Axes", outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        rates = [run.recipe.learning_rate for run in outcome.runs]
        axes.plot(rates, [run.final_loss for run in outcome.runs], "o-", label=outcome.label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("learning rate")
    axes.set_title("final training loss")
    axes.legend(fontsize=8)
