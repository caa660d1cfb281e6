"""The figures of the pages about batch sizes: tables and a plot, made of the record."""

import functools
import pathlib

import numpy as np
from matplotlib.figure import Figure

from benchmarks import records
from benchmarks.quality.report import table
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


def best(rates, losses):
    """`(loss, rate, at the edge)` of the learning rate with the least mean loss over the seeds.

    A rate of which a training diverged is none. At the edge of what was tried, another one might be
    better.
    """
    means = [np.inf if None in row else np.mean(row) for row in losses]
    i = int(np.argmin(means))
    return means[i], rates[i], i in (0, len(rates) - 1)


def losses(name):
    """The least loss of every optimizer with every batch size, and its learning rate."""
    record = records.load(f"batches-{name}")
    task = record["results"]
    found = {
        optimizer: [best(task["rates"][optimizer], cell) for cell in cells]
        for optimizer, cells in task["losses"].items()
    }
    least = [min(column)[0] for column in zip(*found.values(), strict=True)]
    rows = []
    for optimizer, cells in found.items():
        row = [f"`{optimizer}`" if " " not in optimizer else optimizer]
        for (loss, rate, at_edge), lowest in zip(cells, least, strict=True):
            number = f"**{loss:.3f}**" if loss == lowest else f"{loss:.3f}"
            row.append(f"{number} ({rate:.2g}{', edge' if at_edge else ''})")
        rows.append(row)
    head = [""] + [
        f"batches of {size:,}, {task['examples'] // size:,} steps" for size in task["sizes"]
    ]
    return table(head, rows, record)


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
    drawn = Figure((12.6, 3.3 * len(results)), dpi=110, layout="constrained")
    axes = drawn.subplots(len(results), 3, squeeze=False)
    for row, (name, task) in zip(axes, results.items(), strict=True):
        for i, (ax, size) in enumerate(zip(row, task["sizes"], strict=True)):
            for optimizer, cells in task["losses"].items():
                means = [np.nan if None in x else np.mean(x) for x in cells[i]]
                ax.plot(
                    task["rates"][optimizer], means, label=optimizer, marker=".", **LOOKS[optimizer]
                )
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid()
            ax.set_axisbelow(True)
            ax.set_xscale("log")
            ax.set_yscale("log")
            steps = task["examples"] // size
            ax.set_title(f"{name}, batches of {size:,}, {steps:,} steps", fontsize=10, loc="left")
            ax.set_xlabel("learning rate")
        row[0].set_ylabel("held-out loss (nats)")
    axes[0, 0].legend(frameon=False, fontsize=7)
    return drawn


FIGURES = {
    f"batches.{name}.{what}": functools.partial(function, name)
    for name in TASKS
    for what, function in (("losses", losses), ("about", about))
}
