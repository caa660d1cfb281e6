"""The plots of the pages, drawn from the records that there are."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from benchmarks import records
from benchmarks.quality.statistics import excess, interval
from benchmarks.quality.synthetic import SCALES
from benchmarks.quality.variants import BITSANDBYTES, CODED, DEFAULT, RULES, TRAINED
from optax_lamblion.demo.themes import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE_BLUE,
    PALE_GREEN,
    PALE_GREY,
    PALE_ORANGE,
    save_in_themes,
)

DOCS = pathlib.Path(__file__).parents[2] / "docs"
TASKS = ("text", "digits")
_HUES = {
    "power": (PALE_BLUE, BLUE),
    "dynamic": (PALE_GREEN, GREEN),
    "linear": (PALE_GREY, GREY),
    BITSANDBYTES.codec: (PALE_ORANGE, ORANGE),
}
_DASHES = {64: ":", 256: "-", 2048: "--"}


def look(way):
    """How lines of a way look: a hue for a codec, dashes for a block size."""
    pale, dark = _HUES[way.codec]
    dashes = _DASHES[way.block_size]
    return dict(color=dark, linestyle=dashes, linewidth=2.2 if way == DEFAULT else 1.4)


def draw():
    """Draws the plots of all records that there are."""
    pictures = {
        "losses": ([f"quality-{task}" for task in TASKS], losses),
        "steps": ([f"quality-{task}" for task in TASKS], steps),
        "scales": (["quality-synthetic"], scales),
    }
    for name, (needed, picture) in pictures.items():
        there = [x for x in needed if (records.RESULTS / f"{x}.json").exists()]
        if there:
            found = [records.load(x)["results"] for x in there]
            save_in_themes(
                lambda picture=picture, found=found: picture(*found),
                DOCS / f"evidence-quality-{name}.png",
            )


def losses(*tasks):
    """What every way ends above float32, a dot for a seed, with the confidence of the mean."""
    picture, axes = _panels(len(tasks), 1.9)
    ways = _trained(tasks[0])[1:]
    for row, task in zip(axes, tasks, strict=True):
        for ax, (name, rule) in zip(row, task["rules"].items(), strict=True):
            for i, way in enumerate(ways):
                values = excess(rule["ways"], way.name)
                found = interval(values)
                color = look(way)["color"] if way.codec else PALE_GREY
                ax.plot(values, [i] * len(values), "o", color=color, markersize=3.5, clip_on=False)
                ax.errorbar(
                    found.mean, i, xerr=found.half, fmt="|", color=color, capsize=3, linewidth=1.5
                )
            ax.axvline(0, color=GREY, linewidth=1)
            ax.set_yticks(range(len(ways)), [way.name for way in ways], fontsize=8)
            ax.invert_yaxis()
            ax.locator_params(axis="x", nbins=5)
            ax.set_title(f"{RULES[name].title}, {_short(task)}", fontsize=10, loc="left")
            if ax is not row[0]:
                ax.tick_params(labelleft=False)
        row[1].set_xlabel("held-out loss above float32 of the same seed (nats)")
    return picture


def steps(*tasks):
    """How far steps are from those of float32 on the same gradients, along the run."""
    picture, axes = _panels(len(tasks), 2.9)
    for row, task in zip(axes, tasks, strict=True):
        for ax, (name, rule) in zip(row, task["rules"].items(), strict=True):
            for way in _trained(task):
                if way.codec:
                    found = rule["ways"][way.name]
                    values = found["opposite" if name == "lion" else "differs"]
                    ax.plot(found["steps"][1:], values, label=way.name, **look(way))
            ax.set_yscale("log")
            what = "share of opposite signs" if name == "lion" else "error of the step, relative"
            ax.set(xlabel="step", ylabel=what)
            ax.set_title(f"{RULES[name].title}, {_short(task)}", fontsize=10, loc="left")
    axes[0, 0].legend(frameon=False, fontsize=7)
    return picture


def scales(results):
    """How far steps are from those of float32, by the scale of the gradients."""
    picture, axes = _panels(1, 3.4, columns=2)
    for ax, (name, rule) in zip(axes[0], results["rules"].items(), strict=True):
        for way in CODED:
            values = [np.mean(rule[way.name][f"log-normal, {x:g}"]["differs"]) for x in SCALES]
            ax.plot(SCALES, values, marker=".", label=way.name, **look(way))
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.invert_xaxis()
        what = "share of signs" if name == "lion" else "error of the step, relative"
        ax.set(xlabel="gradients times", ylabel=what)
        ax.set_title(RULES[name].title, fontsize=10, loc="left")
    axes[0, 1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return picture


def _trained(task):
    """The ways of a record, in their order."""
    return [way for way in TRAINED if way.name in task["rules"]["lion"]["ways"]]


def _panels(rows, height, columns=3):
    picture = Figure((12.6, height * rows + 0.4), dpi=110, layout="constrained")
    axes = picture.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid()
        ax.set_axisbelow(True)
    return picture, axes


def _short(task):
    return "digits" if "digits" in task["title"] else "text"
