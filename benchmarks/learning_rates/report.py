"""The figures of the page about hyper-parameters, made of the record."""

import functools

from benchmarks import markdown, records

FAMILIES = ("adamw", "lion", "lamb")


def _record():
    return records.load("learning-rates")


def losses_of(name):
    """The losses of an optimizer by learning rate, which is a word: JSON has no other keys."""
    return _record()["results"]["losses"][name]


def best(name):
    """The learning rate with the lowest loss."""
    losses = losses_of(name)
    return min(losses, key=losses.get)


def differences(family):
    """8 bits minus 32: up to the best learning rate, and above it."""
    eight, full = losses_of(f"{family}8bit"), losses_of(f"{family}32bit")
    apart = [eight[rate] - full[rate] for rate in eight]
    above = list(eight).index(best(f"{family}8bit")) + 1
    return apart[:above], apart[above:]


def largest(part):
    """The largest difference of all families, up to the best learning rate (0) or above it (1)."""
    return f"{max(abs(x) for family in FAMILIES for x in differences(family)[part]):.4f}"


def about():
    """What is trained, in a few words."""
    found = _record()["results"]
    return f"{found['title']}, {found['parameters']:,} parameters, {found['steps']} steps, one seed"


def tables():
    """A table for every family, with the lowest loss of a row in bold."""
    source = records.source(_record())
    return "\n\n".join([*(_table(family) for family in FAMILIES), source])


def _table(family):
    names = [f"{family}{bits}bit" for bits in (32, 8)]
    return markdown.table(["learning rate", *losses_of(names[0])], [_row(name) for name in names])


def _row(name):
    shown = {rate: f"{loss:.3f}" for rate, loss in losses_of(name).items()}
    shown[best(name)] = f"**{shown[best(name)]}**"
    return [f"`{name}`", *shown.values()]


FIGURES = {
    "learning-rates.about": about,
    "learning-rates.losses": tables,
    "learning-rates.steps": lambda: str(_record()["results"]["steps"]),
    "learning-rates.near": functools.partial(largest, 0),
    "learning-rates.above": functools.partial(largest, 1),
} | {
    f"learning-rates.{family}.best": functools.partial(best, f"{family}8bit") for family in FAMILIES
}
