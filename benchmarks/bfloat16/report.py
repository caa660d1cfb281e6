"""The figures of the page about parameters in bfloat16, made of the record."""

import functools
import pathlib

import numpy as np

from benchmarks import markdown, plots, records
from benchmarks.bfloat16 import picture
from benchmarks.bfloat16.runs import COMPENSATED, FLOAT32, NEAREST, STOCHASTIC, WAYS, Runs

PLOT = pathlib.Path(__file__).parents[2] / "docs" / "bfloat16-training.png"
_ALT = (
    "Held-out loss by step for each way to round the parameters, at the learning rate and at a "
    "tenth of it; and how far each way ends above float32, next to the noise of seeds"
)
_HALVED = {
    FLOAT32: "float32, rounded to bfloat16 at the end",
    COMPENSATED: "bfloat16 compensated, without the residuals",
}


def _record():
    return records.load("bfloat16")


def trained():
    """The runs by optimizer."""
    return {name: Runs(runs) for name, runs in _record()["results"]["optimizers"].items()}


def about():
    """What is trained, in a few words."""
    found = _record()["results"]
    return (
        f"{found['title']}, {found['parameters']:,} parameters, {found['steps']} steps, "
        f"{found['seeds']} seeds"
    )


def tables():
    """A table for every optimizer: mean losses, and how far single seeds end above float32."""
    source = records.source(_record())
    return "\n\n".join([*(_table(name, runs) for name, runs in trained().items()), source])


def _table(name, runs):
    head = [f"`{name}`", "bytes of weight and state"]
    for rate in runs.rates:
        head += [f"learning rate {rate:g}", "above float32"]
    rows = []
    for way in WAYS:
        size = f"{runs.of(way, runs.rates[0])[0]['bytes']:.2f}"
        rows.append([way, size, *_cells(runs, way)])
        if way in _HALVED:
            rows.append([_HALVED[way], "", *_cells(runs, way, in_16_bits=True)])
    noise = [x for rate in runs.rates for x in ("", f"{runs.seed_noise(rate):.4f}")]
    rows.append(["seed noise: standard deviation of float32", "", *noise])
    return markdown.table(head, rows)


def _cells(runs, way, **kwargs):
    cells = []
    for rate in runs.rates:
        more = runs.excess(way, rate, **kwargs)
        cells.append(f"{runs.losses(way, rate, **kwargs).mean():.3f}")
        cells.append(_span(more) if np.any(more) else "")
    return cells


def _span(values):
    """From the least to the most."""
    least, most = (f"{x:+.4f}".replace("-0.0000", "+0.0000") for x in (min(values), max(values)))
    return f"{least} to {most}"


def _excess(way, place):
    """Of all optimizers and seeds, at the rate (0) or a tenth of it (1)."""
    return np.concatenate([runs.excess(way, runs.rates[place]) for runs in trained().values()])


def above(way, place):
    """How far a way ends above float32, from the least to the most."""
    return _span(_excess(way, place))


def largest(way):
    """How far a way ends from float32 at most, above or below, at either rate."""
    return f"{max(abs(_excess(way, place)).max() for place in (0, 1)):.4f}"


def plot():
    """The Markdown that shows the plot."""
    return plots.shown(PLOT, _ALT, _record())


def draw():
    """Draws the plot of what is kept."""
    plots.save(lambda: picture.figure(trained()), PLOT, _record())


FIGURES = {
    "bfloat16.about": about,
    "bfloat16.losses": tables,
    "bfloat16.plot": plot,
    "bfloat16.compensated.largest": functools.partial(largest, COMPENSATED),
    "bfloat16.stochastic.largest": functools.partial(largest, STOCHASTIC),
    "bfloat16.nearest.full": functools.partial(above, NEAREST, 0),
    "bfloat16.nearest.tenth": functools.partial(above, NEAREST, 1),
}
