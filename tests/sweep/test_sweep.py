import inspect
import re

import optax
import pytest

import optax_lamblion
from tests.sweep import report
from tests.test_migrating import BITSANDBYTES

RESULTS = report.read()
LOSSES = RESULTS["losses"]
FAMILIES = pytest.mark.parametrize("family", report.FAMILIES)


def test_the_page_shows_what_was_trained():
    assert report.on_the_page() == report.markdown(RESULTS)


@FAMILIES
def test_the_best_learning_rate_is_the_same_in_8_bits(family):
    best = report.best(RESULTS, f"{family}8bit")
    assert best == report.best(RESULTS, f"{family}32bit")
    rates = list(LOSSES[f"{family}8bit"])
    assert 0 < rates.index(best) < len(rates) - 1  # or the best might be outside


def _differences(family):
    """8 bits minus 32: up to the best learning rate, and above it."""
    eight, full = LOSSES[f"{family}8bit"], LOSSES[f"{family}32bit"]
    all_of_them = [eight[rate] - full[rate] for rate in eight]
    above = list(eight).index(report.best(RESULTS, f"{family}8bit")) + 1
    return all_of_them[:above], all_of_them[above:]


def test_bits_change_losses_by_as_much_as_the_page_says():
    text = report.PAGE.read_text(encoding="utf-8")
    said = r"less than (\d\.\d+)\. Above it, .* differ by less than (\d\.\d+)"
    near, far = map(float, re.search(said, " ".join(text.split())).groups())
    up_to, above = zip(*map(_differences, report.FAMILIES), strict=True)
    assert max(abs(d) for part in up_to for d in part) < near
    largest = [d for part in above for d in part]
    assert 0.75 * far < max(map(abs, largest)) < far
    assert min(largest) < 0 < max(largest)  # in either direction


def test_what_the_page_says_of_the_best():
    lion, adamw = (float(report.best(RESULTS, f"{name}8bit")) for name in ("lion", "adamw"))
    assert lion == adamw / 2
    ends = {f: min(LOSSES[f"{f}8bit"].values()) for f in report.FAMILIES}
    assert sorted(ends, key=ends.get) == ["lamb", "adamw", "lion"]


# --- Defaults ------------------------------------------------------------------------------------

_ROW = re.compile(r"^\| (Lion|LAMB|AdamW) \| (bitsandbytes|Optax|optax-lamblion) \|(.*)\|$", re.M)
ROWS = _ROW.findall(report.PAGE.read_text(encoding="utf-8"))


def _defaults(name, library):
    """Learning rate, b1, b2, eps and weight decay; None where there is none."""
    if library == "bitsandbytes":
        theirs = BITSANDBYTES[name]
        b1, b2 = theirs["betas"]
        return theirs["lr"], b1, b2, theirs.get("eps"), theirs["weight_decay"]
    module = optax if library == "Optax" else optax_lamblion
    found = inspect.signature(getattr(module, name.lower())).parameters
    values = [
        found[x].default if x in found else None
        for x in ("learning_rate", "b1", "b2", "eps", "weight_decay")
    ]
    return tuple(None if x is inspect.Parameter.empty else x for x in values)


@pytest.mark.parametrize("name, library, cells", ROWS, ids=lambda x: x.replace(" ", ""))
def test_defaults_are_those_of_the_signatures(name, library, cells):
    shown = tuple(float(x) if x.strip() else None for x in cells.split("|"))
    assert shown == _defaults(name, library)


def test_every_optimizer_of_every_library_is_in_the_table():
    assert len({(name, library) for name, library, _ in ROWS}) == len(ROWS) == 9
