"""The figures of the pages about batch sizes: tables and a plot, made of the record."""

import functools
import pathlib
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks import plots, records
from benchmarks.batches.search import mean
from benchmarks.quality.report import table
from benchmarks.quality.statistics import interval
from optax_lamblion.demo.themes import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE_GREEN,
    PALE_ORANGE,
    save_in_themes,
)

PLOT = pathlib.Path(__file__).parents[2] / "docs" / "evidence-batches.png"
TASKS = ("digits", "text")
LOOKS = {
    "optax.lamb": dict(color=PALE_ORANGE, linewidth=4.5),
    "lamb32bit": dict(color=ORANGE, linewidth=1, linestyle=":"),
    "lamb8bit": dict(color=ORANGE, linewidth=1.6, linestyle="--"),
    "optax.adamw": dict(color=PALE_GREEN, linewidth=4.5),
    "adamw8bit": dict(color=GREEN, linewidth=1.6, linestyle="--"),
    "bitsandbytes LAMB8bit": dict(color=GREY, linewidth=1.4),
    "lion8bit": dict(color=BLUE, linewidth=1.6),
}


PAIRS = (
    ("lamb32bit", "optax.lamb"),
    ("lamb8bit", "optax.lamb"),
    ("adamw8bit", "optax.adamw"),
    ("optax.lamb", "optax.adamw"),
    ("lamb8bit", "adamw8bit"),
    ("lamb8bit", "bitsandbytes LAMB8bit"),
    ("bitsandbytes LAMB8bit", "optax.adamw"),
    ("lion8bit", "adamw8bit"),
)
"""Optimizers whose losses are compared seed by seed. The first two are the same rule: what they
differ by is chance."""


class Best(NamedTuple):
    """The learning rate with the least mean loss of those that were tried, and all its losses.

    At the edge of what was tried, another one might be better.
    """

    rate: float
    losses: list[float]
    at_edge: bool


def best(cell):
    """What is best of a cell. A rate with which a training diverged is not."""
    i = int(np.argmin([mean(losses) for losses in cell["losses"]]))
    return Best(cell["rates"][i], cell["losses"][i], i in (0, len(cell["rates"]) - 1))


def _found(task):
    """What is best of every optimizer with every batch size."""
    return {name: [best(cell) for cell in cells] for name, cells in task["cells"].items()}


def losses(name):
    """The least loss of every optimizer with every batch size, and its learning rate."""
    record = records.load(f"batches-{name}")
    found = _found(record["results"])
    least = [min(mean(x.losses) for x in column) for column in zip(*found.values(), strict=True)]
    rows = []
    for optimizer, cells in found.items():
        row = [_code(optimizer)]
        for cell, lowest in zip(cells, least, strict=True):
            loss = mean(cell.losses)
            number = f"**{loss:.3f}**" if loss == lowest else f"{loss:.3f}"
            row.append(f"{number} ({cell.rate:.2g}{', edge' if cell.at_edge else ''})")
        rows.append(row)
    return table(_head(record["results"]), rows, record)


def _apart(found, one, other):
    """How far the losses of two optimizers are apart, for every batch size."""
    cells = zip(found[one], found[other], strict=True)
    return [interval(np.subtract(x.losses, y.losses)) for x, y in cells]


def differences(name):
    """How far the losses of two optimizers are apart at their best rates, seed by seed."""
    record = records.load(f"batches-{name}")
    found = _found(record["results"])
    rows = []
    for one, other in PAIRS:
        numbers = [f"{x}" if x.holds_zero else f"**{x}**" for x in _apart(found, one, other)]
        rows.append([f"{_code(one)} minus {_code(other)}", *numbers])
    return table(_head(record["results"]), rows, record)


def difference(one, other, column, name):
    """How far the losses of two optimizers are apart with one batch size, which is a column."""
    task = records.load(f"batches-{name}")["results"]
    return str(_apart(_found(task), one, other)[column])


def _head(task):
    return [""] + [
        f"batches of {size:,}, {task['examples'] // size:,} steps" for size in task["sizes"]
    ]


def _code(name):
    return name if " " in name else f"`{name}`"


def about(name):
    """What is trained, in a few words."""
    task = records.load(f"batches-{name}")["results"]
    return (
        f"{task['title']}, {task['parameters']:,} parameters, {task['examples']:,} examples, "
        f"{task['seeds']} seeds"
    )


def draw():
    """Draws the plot of the tasks that have a record."""
    results = {
        name: records.load(f"batches-{name}")["results"]
        for name in TASKS
        if (records.RESULTS / f"batches-{name}.json").exists()
    }
    save_in_themes(lambda: picture(results), PLOT)


def picture(results):
    """Loss by learning rate, a row for every task and a column for every batch size."""
    drawn = Figure((12.6, 3.3 * len(results) + 0.3), dpi=110, layout="constrained")
    axes = drawn.subplots(len(results), len(_COLUMNS), squeeze=False)
    for row, (name, task) in zip(axes, results.items(), strict=True):
        for i, (ax, size) in enumerate(zip(row, task["sizes"], strict=True)):
            for optimizer, cells in task["cells"].items():
                means = [mean(losses) for losses in cells[i]["losses"]]
                looks = dict(label=optimizer, marker=".", **LOOKS[optimizer])
                ax.plot(cells[i]["rates"], means, **looks)
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid()
            ax.set_axisbelow(True)
            ax.set_xscale("log")
            plots.log_y(ax)
            steps = task["examples"] // size
            ax.set_title(f"{name}, batches of {size:,}, {steps:,} steps", fontsize=10, loc="left")
            ax.set_xlabel("learning rate")
        row[0].set_ylabel("held-out loss (nats)")
    handles = axes[0, 0].get_legend_handles_labels()
    drawn.legend(*handles, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    return drawn


_NAMED = {
    "lamb-adamw": ("optax.lamb", "optax.adamw"),
    "lamb8bit-adamw8bit": ("lamb8bit", "adamw8bit"),
}
_COLUMNS = ("smallest", "middle", "largest")
_KINDS = {
    "losses": losses,
    "differences": differences,
    "about": about,
    **{
        f"{pair}.{size}": functools.partial(difference, *optimizers, column)
        for pair, optimizers in _NAMED.items()
        for column, size in enumerate(_COLUMNS)
    },
}
FIGURES = {
    f"batches.{name}.{kind}": functools.partial(function, name)
    for name in TASKS
    for kind, function in _KINDS.items()
}
