"""What the page says of the trainings: its table and its plot, made of `results.json`.

Losses are of held-out data and of all that a way knows of the parameters: in float32, or with what
compensation keeps beside bfloat16. Runs of one seed start alike and see the same batches, so what a
way costs is the difference from float32 of the same seed.
"""

import json
import pathlib
import re
import statistics
import textwrap

import numpy as np
from matplotlib.figure import Figure

from optax_lamblion.demo.themes import BLUE, GREEN, GREY, ORANGE, PALE_GREY, save_in_themes

HERE = pathlib.Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGE = DOCS / "bfloat16.md"
PLOT = DOCS / "bfloat16-training.png"
_RESULTS = HERE / "results.json"
_ROW = re.compile(r"\[([-\d.,\s]+)\]")  # a list of numbers, which belongs on a line
_PLACE = re.compile(r"(<!-- training -->\n\n)(.*?)(\n\n<!-- /training -->)", re.DOTALL)

FLOAT32 = "float32"
COMPENSATED = "bfloat16 compensated"
STOCHASTIC = "bfloat16 stochastic"
NEAREST = "bfloat16 nearest"
WAYS = (FLOAT32, COMPENSATED, STOCHASTIC, NEAREST)
_ALT = (
    "Held-out loss by step for each way to round the parameters, at the learning rate and at a "
    "tenth of it; and how far each way ends above float32, next to the noise of seeds"
)
_HALVED = {
    FLOAT32: "float32, rounded to bfloat16 at the end",
    COMPENSATED: "bfloat16 compensated, without the residuals",
}
LOOKS = {
    FLOAT32: dict(color=PALE_GREY, linewidth=5),
    COMPENSATED: dict(color=BLUE, linewidth=1.6),
    STOCHASTIC: dict(color=GREEN, linewidth=1.6, linestyle="--"),
    NEAREST: dict(color=ORANGE, linewidth=1.6),
}


def read():
    """What has been trained, by optimizer."""
    return json.loads(_RESULTS.read_text(encoding="utf-8")) if _RESULTS.exists() else {}


def write(results):
    """Keeps the results, and makes page and plot of them."""
    text = _ROW.sub(lambda row: f"[{' '.join(row[1].split())}]", json.dumps(results, indent=1))
    _RESULTS.write_text(text + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    found = _PLACE.search(page)
    shown = page[: found.start(2)] + markdown(results) + page[found.end(2) :]
    PAGE.write_text(shown, encoding="utf-8")
    save_in_themes(lambda: figure(results), PLOT)


def on_the_page():
    """What the page says of the trainings now."""
    return _PLACE.search(PAGE.read_text(encoding="utf-8"))[2]


class Trainings:
    """The runs of one optimizer."""

    def __init__(self, found):
        self.runs = found["runs"]
        self.rates = sorted({run["learning_rate"] for run in self.runs}, reverse=True)
        self.seeds = sorted({run["seed"] for run in self.runs})

    def of(self, way, rate):
        """The runs of a way at a learning rate, in the order of their seeds."""
        found = {
            run["seed"]: run
            for run in self.runs
            if (run["way"], run["learning_rate"]) == (way, rate)
        }
        return [found[seed] for seed in self.seeds]

    def losses(self, way, rate, *, in_16_bits=False):
        """The loss at the end, for each seed."""
        runs = self.of(way, rate)
        return np.array([run["loss_16bit"] if in_16_bits else run["loss"][-1] for run in runs])

    def excess(self, way, rate, **kwargs):
        """How much of it is more than with float32 parameters."""
        return self.losses(way, rate, **kwargs) - self.losses(FLOAT32, rate)

    def seed_noise(self, rate):
        """The standard deviation, over the seeds, of the loss with float32 parameters."""
        return statistics.stdev(self.losses(FLOAT32, rate))


def markdown(results):
    """The tables and the plot, with what they are of."""
    about = next(iter(results.values()))
    parts = [
        f"{about['task']}, {about['parameters']:,} parameters, {about['steps']} steps, "
        f"{len(Trainings(about).seeds)} seeds. Each cell shows the mean held-out loss; the column "
        "next to it shows how far single seeds end above float32 parameters with the same seed, "
        "from the least to the most."
    ]
    parts += [_table(name, Trainings(found)) for name, found in results.items()]
    parts.append(f"![{_ALT}]({PLOT.name})")
    return "\n\n".join(part if part.startswith("|") else _wrapped(part) for part in parts)


def _wrapped(text):
    return textwrap.fill(text, 104, break_on_hyphens=False, break_long_words=False)


def _table(name, trainings):
    head = [f"`{name}`", "bytes of weight and state"]
    for rate in trainings.rates:
        head += [f"learning rate {rate:g}", "above float32"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for way in WAYS:
        lines.append([way, f"{trainings.of(way, trainings.rates[0])[0]['bytes']:.2f}"])
        for rate in trainings.rates:
            lines[-1] += _cells(trainings, way, rate)
        if way in _HALVED:
            lines.append([_HALVED[way], ""])
            for rate in trainings.rates:
                lines[-1] += _cells(trainings, way, rate, in_16_bits=True)
    noise = ["seed noise: standard deviation of float32", ""]
    for rate in trainings.rates:
        noise += ["", f"{trainings.seed_noise(rate):.4f}"]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, noise])


def _cells(trainings, way, rate, **kwargs):
    loss = f"{trainings.losses(way, rate, **kwargs).mean():.3f}"
    more = trainings.excess(way, rate, **kwargs)
    if not np.any(more):
        return [loss, ""]
    least, most = (f"{x:+.4f}".replace("-0.0000", "+0.0000") for x in (more.min(), more.max()))
    return [loss, f"{least} to {most}"]


def figure(results):
    """Loss by step, a row for every optimizer, and what a way costs in the end."""
    rows = len(results)
    picture = Figure((13.8, 3.4 * rows), dpi=110, layout="constrained")
    axes = picture.subplots(rows, 3, squeeze=False, width_ratios=[1, 1, 0.8])
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid()
        ax.set_axisbelow(True)
    for row, (name, found) in zip(axes, results.items(), strict=True):
        trainings = Trainings(found)
        for ax, rate in zip(row, trainings.rates, strict=False):
            _draw_curves(ax, trainings, rate)
            ax.set_title(f"{name}, learning rate {rate:g}", fontsize=10, loc="left")
        _draw_ends(row[-1], trainings)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return picture


def _draw_curves(ax, trainings, rate):
    for way in WAYS:
        runs = trainings.of(way, rate)
        steps, losses = runs[0]["steps"], np.array([run["loss"] for run in runs])
        ax.plot(steps, losses.mean(axis=0), label=way, **LOOKS[way])
        ax.fill_between(
            steps, losses.min(axis=0), losses.max(axis=0), color=LOOKS[way]["color"], alpha=0.2,
            linewidth=0,
        )  # fmt: skip
    lowest, highest = ax.dataLim.y0, max(x["loss"][1] for w in WAYS for x in trainings.of(w, rate))
    margin = 0.05 * (highest - lowest)
    ax.set_ylim(lowest - margin, highest + margin)  # the start, where all are alike, is far above
    ax.set(xlabel="step", ylabel="held-out loss (nats)")


def _draw_ends(ax, trainings):
    ticks = {}
    for i, rate in enumerate(trainings.rates):
        noise = trainings.seed_noise(rate)
        ax.fill_betweenx([4 * i - 0.5, 4 * i + 2.5], -noise, noise, color=PALE_GREY, linewidth=0)
        for j, way in enumerate(WAYS[1:]):
            excess = trainings.excess(way, rate)
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
