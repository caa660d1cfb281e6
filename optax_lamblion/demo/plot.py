"""The picture of a comparison: how fast each optimizer learns, and what its state weighs.

It is drawn from what `results.json` holds, so it can be drawn again without training. Optimizers of
one family share a hue. The 32-bit one is a broad, pale, solid line and the 8-bit one a narrow,
dark, dashed line, so that both stay visible where they coincide, as they should. Paged optimizers
have markers and hatched bars. Where parameters are kept in several ways, float32 is the broad line,
and each rounding has its own dashes. Colours are those of a theme: draw inside of `plot_theme`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from optax_lamblion.demo.optimizers import OPTIMIZERS
from optax_lamblion.demo.themes import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE_BLUE,
    PALE_GREEN,
    PALE_GREY,
    PALE_ORANGE,
)

Record = Mapping[str, Any]

_HUES = {
    "lion": (PALE_BLUE, BLUE),
    "lamb": (PALE_ORANGE, ORANGE),
    "adamw": (PALE_GREEN, GREEN),
}
_DASHED = (0, (4, 1.6))
_ROUNDINGS = {
    "nearest": (0, (1, 1.2)),
    "stochastic": (0, (6, 1.6, 1, 1.6)),
    "compensated": _DASHED,
}


class _Look(NamedTuple):
    color: str
    width: float
    dashes: str | tuple
    paged: bool

    @property
    def hatch(self) -> str:
        return "////" if self.paged else ""


def comparison_figure(record: Record) -> Figure:
    """Draws a comparison.

    Args:
      record: What `results.json` of a run holds.

    Returns:
      A figure that belongs to no window: call its `savefig`.
    """
    runs = record["optimizers"]
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03)
    lines = sum(2 if "dtype" in run else 1 for run in runs)  # names with a dtype take two
    figure = Figure(figsize=(12, max(5, 0.42 * lines + 1.5)), layout=layout)
    curves, bars = figure.subplots(1, 2, width_ratios=[3, 1])
    figure.suptitle(f"{record['task']} ({record['parameters']:,} parameters)", fontsize=12)
    _draw_curves(curves, record)
    _draw_bars(bars, runs)
    return figure


def _draw_curves(axes: Axes, record: Record) -> None:
    runs = record["optimizers"]
    for run in runs:
        train = _smoothed(run["curves"]["train_loss"])
        color = _look(run).color
        axes.plot(np.arange(train.size), train, color=color, linewidth=0.8, alpha=0.55, zorder=1)
    for run in runs:
        look, losses = _look(run), _held_out(run)
        axes.plot(
            run["curves"]["held_out_steps"],
            losses,
            color=look.color,
            linewidth=look.width,
            linestyle=look.dashes,
            marker="o" if look.paged else None,
            markersize=max(5.0, 1.6 * look.width),
            markerfacecolor="none",
            label=f"{_in_lines(run['name'])}  {losses[-1]:.3f}",
            zorder=2 + (look.width < 3),
        )
    axes.plot([], [], color=GREY, linewidth=0.8, label="training loss, smoothed")
    axes.set_xlim(0, max(run["steps"] for run in runs))
    baseline = record["baseline"]
    _scale_losses(axes, runs, baseline["loss"])
    _draw_baseline(axes, baseline["name"], baseline["loss"])
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats)")
    axes.set_title("Loss on held-out data", loc="left", fontsize=11)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(
        title="held-out loss at the end",
        loc="upper left",
        bbox_to_anchor=(1.02, 1),  # beside the curves, which leave no corner free
        borderaxespad=0,
        alignment="left",
        frameon=False,
        handlelength=3.5,
        labelspacing=0.8,
        fontsize=9,
        title_fontsize=9,
    )
    axes.spines[["top", "right"]].set_visible(False)


def _draw_baseline(axes: Axes, name: str, baseline: float) -> None:
    axes.axhline(baseline, color=GREY, linewidth=1, linestyle=":")
    axes.annotate(
        f"{name} alone: {baseline:.2f}",
        (0.995, baseline),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color=GREY,
        fontsize=9,
    )


def _draw_bars(axes: Axes, runs: Sequence[Record]) -> None:
    kept = any("dtype" in run for run in runs)  # then parameters are a part of what is compared
    sizes = [_bytes_per_parameter(run) for run in runs]
    rows = np.arange(len(runs))
    bars = axes.barh(rows, sizes, color=[_look(run).color for run in runs], height=0.62)
    for bar, run in zip(bars, runs, strict=True):
        bar.set(hatch=_look(run).hatch, edgecolor=axes.get_facecolor(), linewidth=0)
    for row, size in zip(rows, sizes, strict=True):
        axes.annotate(
            f"{size:.2f}",
            (size, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(rows, [_in_lines(run["name"]) for run in runs], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(sizes))
    axes.set_xticks([])
    axes.tick_params(length=0)
    what = "Weight and state" if kept else "State"
    what += ", bytes\nper parameter"
    if any(_look(run).paged for run in runs):
        what += " (hatched:\nin host memory)"
    axes.set_title(what, loc="left", fontsize=11)
    axes.spines[:].set_visible(False)


def _bytes_per_parameter(run: Record) -> float:
    if "dtype" not in run:
        return run["bytes_per_parameter"]
    count = run["state_bytes"] / run["bytes_per_parameter"]
    return (run["parameter_bytes"] + run["state_bytes"]) / count


def _look(run: Record) -> _Look:
    row = OPTIMIZERS.get(run["name"].partition(",")[0])
    pale, dark = _HUES.get(row.family, (PALE_GREY, GREY)) if row else (PALE_GREY, GREY)
    paged = bool(row and row.name.startswith("paged_"))
    if "dtype" in run:
        dashes = _ROUNDINGS.get(run["param_rounding"] or "")
        return _Look(dark, 1.8, dashes, paged) if dashes else _Look(pale, 4.5, "-", paged)
    if row and row.bits == 8:
        return _Look(dark, 1.8, _DASHED, paged)
    if row and row.ours:
        return _Look(dark, 1.0, "-", paged)
    return _Look(pale, 4.5, "-", paged)


def _in_lines(name: str) -> str:
    return name.replace(", ", ",\n")


def _held_out(run: Record) -> np.ndarray:
    return np.asarray([values["loss"] for values in run["curves"]["held_out"]], float)


def _smoothed(losses: Sequence[float]) -> np.ndarray:
    """A running mean over a twentieth of the steps, shorter at the ends."""
    values = np.asarray(losses, float)
    window = np.ones(max(1, values.size // 20))
    weights = np.convolve(np.ones_like(values), window, "same")
    return np.convolve(values, window, "same") / weights


def _scale_losses(axes: Axes, runs: Sequence[Record], baseline: float) -> None:
    """Shows the held-out losses and the baseline; a start from chance, above it, is no news.

    Losses that fall to a fraction of the baseline need a logarithmic axis to be told apart.
    """
    best = np.nanmin([baseline, *(loss for run in runs for loss in _held_out(run))])
    if 0 < best < baseline / 8:
        axes.set_yscale("log")
        axes.set_ylim(0.5 * best, 1.6 * baseline)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:.1g}")
    else:
        margin = 0.08 * (baseline - best) or 0.1
        axes.set_ylim(best - margin, baseline + 1.5 * margin)
