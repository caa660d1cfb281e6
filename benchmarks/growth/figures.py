"""What pages show of growth: exponents, tables and plots."""

import functools
import pathlib

import numpy as np

from benchmarks import plots, records
from benchmarks.markdown import number, spread, table
from optax_lamblion.demo import contest

RECORD = "growth-cpu"
_PLOT = pathlib.Path(__file__).parents[2] / "docs" / "evidence-growth.png"
_ALT = (
    "Time of a step, and time to trace and compile it, against the number of leaves, the size of a "
    "leaf, the bytes of a page and the number of devices, for Optax's and our 8-bit optimizers"
)
_UPPER = 40
"""Exponents are of the points up to this many times smaller than the largest one."""
COSTS = {
    "step": lambda x: x["median_ms"],
    "trace": lambda x: x["trace_seconds"],
    "compile": lambda x: x["compile_seconds"],
    "state": lambda x: x["state_bytes_per_parameter"] * x["parameters"],
    "temporary": lambda x: x["temporary_bytes"],
}


def points(sweep, optimizer):
    """The points of one optimizer in a sweep."""
    found = records.load(RECORD)["results"][sweep]
    return [x for x in found if x["optimizer"] == optimizer]


def exponent(xs, ys):
    """The power by which the last points grow: 1 is as the work does, 0 is not at all."""
    upper = [(x, y) for x, y in zip(xs, ys, strict=True) if x * _UPPER >= max(xs)]
    if len(upper) < 2 or min(y for _, y in upper) <= 0:
        return None
    return float(np.polyfit(*np.log(upper).T, 1)[0])


def _names():
    return [name for family in contest.FAMILIES for name in (f"optax.{family}", f"{family}8bit")]


def exponents(sweep):
    """The exponents of all costs of a sweep."""
    rows = []
    for name in _names():
        found = points(sweep, name)
        xs = [x["x"] for x in found]
        cells = [exponent(xs, list(map(cost, found))) for cost in COSTS.values()]
        # A fitted zero may be negative, depending on the machine: adding zero removes the sign.
        shown = ("none" if x is None else f"{round(x, 2) + 0:.2f}" for x in cells)
        rows.append([f"`{name}`", *shown])
    return table(["exponent", *COSTS], rows)


def leaves():
    """Ours on many tiny leaves, as multiples of Optax's: a step, and to trace and compile it."""
    found = {name: {x["x"]: x for x in points("leaves", name)} for name in _names()}
    rows = []
    for n in found["optax.lion"]:
        row = [f"{n:,}"]
        for family in contest.FAMILIES:
            ours, theirs = found[f"{family}8bit"].get(n), found[f"optax.{family}"].get(n)
            if ours is None:  # of these, fewer are measured
                row += ["", ""]
                continue
            row.append(number(ours["ratio"]))
            ready = [x["trace_seconds"] + x["compile_seconds"] for x in (ours, theirs)]
            row.append(number(ready[0] / ready[1]))
        rows.append(row)
    head = ["tiny leaves"]
    for family in contest.FAMILIES:
        head += [f"`{family}8bit`: step", "ready"]
    return table(head, rows, words=0)


def largest():
    """Bytes of a step on a leaf that was only compiled for."""
    rows = []
    for name in _names():
        (x,) = points("largest", name)
        temporary = x["temporary_bytes"] / x["x"]
        rows.append([f"`{name}`", f"{x['state_bytes_per_parameter']:.3f}", f"{temporary:.2f}"])
    return table(["2^30 parameters", "state bytes per parameter", "temporary"], rows)


def pages():
    """What the size of pages costs Lion, against its state on the device."""
    head = ["`page_bytes`", "step, times that of `lion8bit`", "compile, s", "temporary, MiB"]
    rows = [
        [
            f"{x['x'] / 2**20:g} MiB",
            spread(x["ratio"], x["ratio_quartiles"]),
            number(x["compile_seconds"]),
            f"{x['temporary_bytes'] / 2**20:.0f}",
        ]
        for x in points("pages", "paged_lion8bit")
    ]
    return table(head, rows)


def devices():
    """What dividing a leaf costs on devices that share two cores, against one device."""
    rows = []
    for name in _names():
        found = points("devices", name)
        rows.append([f"`{name}`", *(number(x["median_ms"] / found[0]["median_ms"]) for x in found)])
    counts = [x["x"] for x in points("devices", "lion8bit")]
    return table(["step, times that on one device; devices:", *counts], rows)


def source():
    """Where the figures come from."""
    return records.source(records.load(RECORD))


def picture():
    """The plot."""
    return plots.shown(_PLOT, _ALT, records.load(RECORD))


def draw():
    """Draws the plot anew."""
    plots.save(_figure, _PLOT, records.load(RECORD))


_LOOKS = {
    "lion": plots.BLUE,
    "lamb": plots.ORANGE,
    "adamw": plots.GREEN,
}
_SWEEPS = {
    "leaves": "tiny leaves",
    "sizes": "parameters in a leaf",
    "pages": "bytes of a page",
    "devices": "virtual devices",
}


def _figure():
    figure, axes = plots.new((13.5, 6.4), 2, 4)
    for (sweep, what), column in zip(_SWEEPS.items(), axes.T, strict=True):
        for name in [*_names(), "paged_lion8bit"]:
            found = [x for x in points(sweep, name) if x["x"]]
            if len(found) < 2:
                continue
            family = next(x for x in contest.FAMILIES if x in name)
            look = {"color": _LOOKS[family], "marker": ".", "label": name}
            look |= {"linestyle": "--"} if name.startswith("optax.") else {}
            xs = [x["x"] for x in found]
            column[0].plot(xs, [x["median_ms"] for x in found], **look)
            column[1].plot(xs, [x["trace_seconds"] + x["compile_seconds"] for x in found], **look)
        for ax in column:
            ax.set_xscale("log", base=2 if sweep in ("pages", "devices") else 10)
            plots.log_y(ax)
        column[1].set_xlabel(what)
    axes[0, 0].set_ylabel("step (ms)")
    axes[1, 0].set_ylabel("trace and compile (s)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[0, 2].legend(frameon=False, fontsize=8)
    return figure


FIGURES = {
    "growth-cpu.leaves": leaves,
    "growth-cpu.leaves.exponents": functools.partial(exponents, "leaves"),
    "growth-cpu.sizes.exponents": functools.partial(exponents, "sizes"),
    "growth-cpu.largest": largest,
    "growth-cpu.pages": pages,
    "growth-cpu.devices": devices,
    "growth-cpu.source": source,
    "growth-cpu.plot": picture,
}
