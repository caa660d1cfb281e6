import inspect
import re

import optax
import pytest

import optax_lamblion
from benchmarks import pages
from benchmarks.learning_rates import report
from tests.test_migrating import BITSANDBYTES

PAGE = pages.ROOT / "docs/hyperparameters.md"
FAMILIES = pytest.mark.parametrize("family", report.FAMILIES)


@FAMILIES
def test_the_best_learning_rate_is_the_same_in_8_bits(family):
    best = report.best(f"{family}8bit")
    assert best == report.best(f"{family}32bit")
    rates = list(report.losses_of(f"{family}8bit"))
    assert 0 < rates.index(best) < len(rates) - 1  # or the best might be outside


def test_bits_change_losses_more_above_the_best_rate_and_in_either_direction():
    up_to, above = zip(*map(report.differences, report.FAMILIES), strict=True)
    largest = [x for part in above for x in part]
    assert max(abs(x) for part in up_to for x in part) < max(map(abs, largest)) / 4
    assert min(largest) < 0 < max(largest)


def test_what_the_page_says_of_the_best():
    lion, adamw = (float(report.best(f"{name}8bit")) for name in ("lion", "adamw"))
    assert lion == adamw / 2
    ends = {family: min(report.losses_of(f"{family}8bit").values()) for family in report.FAMILIES}
    assert sorted(ends, key=ends.get) == ["lamb", "adamw", "lion"]


# --- Defaults ------------------------------------------------------------------------------------

_ROW = re.compile(r"^\| (Lion|LAMB|AdamW) \| (bitsandbytes|Optax|optax-lamblion) \|(.*)\|$", re.M)
ROWS = _ROW.findall(PAGE.read_text(encoding="utf-8"))


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
