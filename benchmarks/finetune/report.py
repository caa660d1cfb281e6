"""The figures of the page about fine-tuning, made of the record."""

import functools

import numpy as np

from benchmarks import records
from benchmarks.finetune.training import FAMILIES
from benchmarks.quality.report import table
from benchmarks.quality.statistics import interval


def _record():
    return records.load("finetune")


def _results():
    return _record()["results"]


def about():
    """What is trained, in a few words."""
    found = _results()
    return (
        f"{found['parameters']:,} parameters, {found['sentences']:,} sentences in batches of "
        f"{found['batch_size']}, {found['steps']:,} steps, {found['seeds']} seeds"
    )


def difference(family, what):
    """What 8-bit state has over float32 of the same seed: an interval over the seeds."""
    found = _results()["families"][family]
    in_8_bits, float32 = ([run[what] for run in found[bits]] for bits in ("8bit", "float32"))
    return interval(np.subtract(in_8_bits, float32))


def points(share):
    """An interval of a share, in percentage points."""
    return f"{100 * share.mean:+.1f} ± {100 * share.half:.1f}"


def in_words(family, what):
    """The same in words."""
    found = difference(family, what)
    return points(found) if what == "accuracy" else str(found)


def differences():
    """Losses and accuracies in float32, how far 8 bits end from them, and the bytes of both."""
    rows = []
    for name, family in _results()["families"].items():
        row = [FAMILIES[name].title]
        for what, shown in (("loss", "{:.4f}".format), ("accuracy", _percent)):
            mean = np.mean([run[what] for run in family["float32"]])
            row += [shown(mean), in_words(name, what)]
        sizes = (family[bits][0]["bytes"] / 2**20 for bits in ("float32", "8bit"))
        rows.append([*row, " → ".join(f"{size:.1f}" for size in sizes)])
    head = [
        "", "held-out loss, float32", "8 bits less float32", "accuracy, float32",
        "8 bits less float32, points", "MiB of state",
    ]  # fmt: skip
    return table(head, rows, _record())


def seeds():
    """The loss and the accuracy of every training."""
    found = _results()
    rows = []
    for name, family in found["families"].items():
        for bits, maker in FAMILIES[name].makers.items():
            title = f"`optax.{name}`" if bits == "float32" else f"`{maker.__name__}`"
            rows.append([title, *(_scores(run) for run in family[bits])])
    return table(["", *(f"seed {i}" for i in range(found["seeds"]))], rows, _record())


def _scores(run):
    return f"{run['loss']:.4f} ({_percent(run['accuracy'])})"


def _percent(share):
    return f"{100 * share:.1f} %"


def rates():
    """Float32's loss with the learning rates that were tried; the least one's was taken."""
    families, rows = _results()["families"], []
    most = max(len(family["rates"]) for family in families.values())
    for name, family in families.items():
        cells = [
            f"**{loss:.4f}** ({rate:g}{_edge(family, rate)})"
            if rate == family["rate"]
            else f"{loss:.4f} ({rate:g})"
            for loss, rate in zip(family["tried"], family["rates"], strict=True)
        ]
        rows.append([f"`optax.{name}`", *cells, *[""] * (most - len(cells))])
    return table(["", "loss (learning rate)", *[""] * (most - 1)], rows, _record())


def _edge(family, rate):
    """At the edge of what was tried, another one might be better."""
    return ", edge" if rate in (family["rates"][0], family["rates"][-1]) else ""


def frozen():
    """How a linear classifier does on the model as it comes."""
    return _scores(_results()["frozen"])


FIGURES = {
    "finetune.about": about,
    "finetune.differences": differences,
    "finetune.seeds": seeds,
    "finetune.rates": rates,
    "finetune.frozen": frozen,
    "finetune.held_out": lambda: str(_results()["held_out"]),
} | {
    f"finetune.{family}.{what}": functools.partial(in_words, family, what)
    for family in FAMILIES
    for what in ("loss", "accuracy")
}
