"""The plot: loss by step, a row for every optimizer, and what a way costs in the end."""

import numpy as np

from benchmarks import plots
from benchmarks.bfloat16.runs import COMPENSATED, FLOAT32, NEAREST, STOCHASTIC, WAYS
from optax_lamblion.demo.themes import BLUE, GREEN, GREY, ORANGE, PALE_GREY

LOOKS = {
    FLOAT32: dict(color=PALE_GREY, linewidth=5),
    COMPENSATED: dict(color=BLUE, linewidth=1.6),
    STOCHASTIC: dict(color=GREEN, linewidth=1.6, linestyle="--"),
    NEAREST: dict(color=ORANGE, linewidth=1.6),
}


def figure(found):
    """The plot of `Runs` by optimizer."""
    drawn, axes = plots.new((13.8, 3.4 * len(found)), len(found), 3, width_ratios=[1, 1, 0.8])
    for row, (name, runs) in zip(axes, found.items(), strict=True):
        for ax, rate in zip(row, runs.rates, strict=False):
            _draw_curves(ax, runs, rate)
            ax.set_title(f"{name}, learning rate {rate:g}", fontsize=10, loc="left")
        _draw_ends(row[-1], runs)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return drawn


def _draw_curves(ax, runs, rate):
    for way in WAYS:
        some = runs.of(way, rate)
        steps, losses = some[0]["steps"], np.array([run["loss"] for run in some])
        ax.plot(steps, losses.mean(axis=0), label=way, **LOOKS[way])
        ax.fill_between(
            steps, losses.min(axis=0), losses.max(axis=0), color=LOOKS[way]["color"], alpha=0.2,
            linewidth=0,
        )  # fmt: skip
    lowest, highest = ax.dataLim.y0, max(x["loss"][1] for w in WAYS for x in runs.of(w, rate))
    margin = 0.05 * (highest - lowest)
    ax.set_ylim(lowest - margin, highest + margin)  # the start, where all are alike, is far above
    ax.set(xlabel="step", ylabel="held-out loss (nats)")


def _draw_ends(ax, runs):
    ticks = {}
    for i, rate in enumerate(runs.rates):
        noise = runs.seed_noise(rate)
        ax.fill_betweenx([4 * i - 0.5, 4 * i + 2.5], -noise, noise, color=PALE_GREY, linewidth=0)
        for j, way in enumerate(WAYS[1:]):
            excess = runs.excess(way, rate)
            ax.plot(
                excess, [4 * i + j] * len(excess), "o", color=LOOKS[way]["color"], clip_on=False
            )
            ticks[4 * i + j] = f"{way.removeprefix('bfloat16 ')}, {rate:g}"
    ax.set_yticks(list(ticks), list(ticks.values()), fontsize=8)
    ax.invert_yaxis()
    ax.set_xscale("symlog", linthresh=0.02)
    ax.axvline(0, color=GREY, linewidth=1)
    ax.set(xlabel="nats above float32 (grey: seed noise)")
    ax.set_title("At the end, a dot for each seed", fontsize=10, loc="left")
