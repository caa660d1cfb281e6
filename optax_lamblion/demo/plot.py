"""The picture of a comparison: how fast each optimizer learns, and what its state weighs.

Optimizers of one family share a hue. The 32-bit one is a broad, pale, solid line and the 8-bit one
a narrow, dark, dashed line, so that both stay visible where they coincide, which they should. Where
parameters are kept in several ways, it is float32 that is broad, and each rounding has its dashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from optax_lamblion.demo.compare import Run
from optax_lamblion.demo.optimizers import OPTIMIZERS
from optax_lamblion.demo.task import Task

# Pale and dark of one hue; blue and orange differ for every kind of colour vision.
_HUES = {
    "lion": ("#8ab8e6", "#0b4f94"),
    "lamb": ("#f5b27a", "#a84300"),
    "adamw": ("#a9d3a5", "#1f6b2a"),
}
_OTHER_HUE = ("#bdbdbd", "#444444")
_INK, _FAINT = "#222222", "#777777"


class _Look(NamedTuple):
    color: str
    width: float
    dashes: str | tuple
    bar: str


_DASHES = {
    "nearest": (0, (1, 1.2)),
    "stochastic": (0, (6, 1.6, 1, 1.6)),
    "compensated": (0, (4, 1.6)),
}


def comparison_figure(task: Task, runs: Sequence[Run]) -> Figure:
    """Draws the runs of a comparison, all on the same task.

    Args:
      task: The task, for its title and its baseline.
      runs: What `compare` returned.

    Returns:
      A figure that belongs to no window: call its `savefig`.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12, wspace=0.06)
    lines = sum(2 for run in runs if run.way)  # names that say how parameters are kept take two
    figure = Figure(figsize=(10, max(5, 0.3 * lines)), layout=layout)
    curves, bars = figure.subplots(1, 2, width_ratios=[2.5, 1])
    figure.suptitle(f"{task.title} ({task.parameter_count:,} parameters)", color=_INK, fontsize=12)
    _draw_curves(curves, task, runs)
    _draw_bars(bars, runs)
    return figure


def _draw_curves(axes: Axes, task: Task, runs: Sequence[Run]) -> None:
    for run in runs:
        train = _smoothed(run.train_losses)
        color = _look(run).color
        axes.plot(np.arange(train.size), train, color=color, linewidth=0.8, alpha=0.55, zorder=1)
    for run in runs:
        look = _look(run)
        losses = [values["loss"] for values in run.held_out]
        axes.plot(
            run.held_out_steps,
            losses,
            color=look.color,
            linewidth=look.width,
            linestyle=look.dashes,
            label=f"{run.name}  {losses[-1]:.3f}",
            zorder=2 + (look.width < 3),
        )
    axes.plot([], [], color=_FAINT, linewidth=0.8, label="training loss, smoothed")
    axes.set_xlim(0, max(run.steps for run in runs))
    baseline = task.baseline["loss"]
    _scale_losses(axes, runs, baseline)
    _draw_baseline(axes, task.baseline_name, baseline)
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("loss (nats)", color=_INK)
    axes.set_title("Loss on held-out data", loc="left", color=_INK, fontsize=11)
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)
    _draw_legend(axes, _height(axes, baseline) - 0.01)  # where losses no longer are
    _strip(axes, "top", "right")


def _draw_baseline(axes: Axes, name: str, baseline: float) -> None:
    axes.axhline(baseline, color=_FAINT, linewidth=1, linestyle=":")
    axes.annotate(
        f"{name} alone: {baseline:.2f}",
        (0.995, baseline),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        color=_FAINT,
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def _draw_legend(axes: Axes, top: float) -> None:
    legend = axes.legend(
        title="held-out loss at the end",
        loc="upper right",
        bbox_to_anchor=(1, top),
        alignment="left",
        framealpha=0.9,
        edgecolor="none",
        labelcolor=_INK,
        handlelength=3,
        fontsize=9,
    )
    legend.get_title().set(color=_INK, fontsize=9)


def _draw_bars(axes: Axes, runs: Sequence[Run]) -> None:
    kept = any(run.way for run in runs)  # then parameters are a part of what is compared
    sizes = [run.total_bytes_per_parameter if kept else run.bytes_per_parameter for run in runs]
    rows = np.arange(len(runs))
    axes.barh(rows, sizes, color=[_look(run).bar for run in runs], height=0.62)
    for row, size in zip(rows, sizes, strict=True):
        axes.annotate(
            f"{size:.2f}",
            (size, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
            fontsize=9,
        )
    axes.set_yticks(rows, [run.name.replace(", ", ",\n") for run in runs], color=_INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max(sizes))
    axes.set_xticks([])
    axes.tick_params(length=0)
    what = "Bytes of weight and state" if kept else "State, bytes per parameter"
    axes.set_title(what, loc="left", color=_INK, fontsize=11)
    _strip(axes, "top", "right", "bottom", "left")


def _look(run: Run) -> _Look:
    row = OPTIMIZERS.get(run.name.partition(",")[0])
    pale, dark = _HUES.get(row.family, _OTHER_HUE) if row else _OTHER_HUE
    if run.way:
        dashes = _DASHES.get(run.way.rounding or "")
        return _Look(dark, 1.8, dashes, dark) if dashes else _Look(pale, 4.5, "-", pale)
    if row and row.bits == 8:
        return _Look(dark, 1.8, (0, (4, 1.6)), dark)
    if row and row.ours:
        return _Look(dark, 1.0, "-", pale)
    return _Look(pale, 4.5, "-", pale)


def _smoothed(losses: Sequence[float]) -> np.ndarray:
    """A running mean over a twentieth of the steps, shorter at the ends."""
    values = np.asarray(losses, float)
    window = np.ones(max(1, values.size // 20))
    weights = np.convolve(np.ones_like(values), window, "same")
    return np.convolve(values, window, "same") / weights


def _scale_losses(axes: Axes, runs: Sequence[Run], baseline: float) -> None:
    """Shows the held-out losses and the baseline; a start from chance, above it, is no news.

    Losses that fall to a fraction of the baseline need a logarithmic axis to be told apart.
    """
    best = np.nanmin([baseline, *(values["loss"] for run in runs for values in run.held_out)])
    if 0 < best < baseline / 8:
        axes.set_yscale("log")
        axes.set_ylim(0.5 * best, 1.6 * baseline)
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        margin = 0.08 * (baseline - best) or 0.1
        axes.set_ylim(best - margin, baseline + 1.5 * margin)


def _height(axes: Axes, value: float) -> float:
    """Where on the vertical axis a value lies, from 0 to 1."""
    return axes.transAxes.inverted().transform(axes.transData.transform((0, value)))[1]


def _strip(axes: Axes, *sides: str) -> None:
    for side in sides:
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
    axes.tick_params(colors=_INK)
