"""The table of optimizers. Every test of the Optax contract runs over all of its rows.

A new variant is a new row here and inherits every claim. Weight decay is never zero, because at
zero coupled and decoupled decay coincide.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
import pytest

import optax_lamblion
from optax_lamblion import AdamState, LambState, LionState, StateOptions


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    """One optimizer under its public name."""

    name: str
    family: str
    bits: int
    oracle: Callable[..., optax.GradientTransformation]
    """The same optimizer in Optax, as a function of our keyword arguments."""
    state_type: type
    kwargs: Mapping[str, Any]
    """Arguments with which it solves the test problems; without `min_8bit_size`."""
    can: frozenset[str] = frozenset({"vmap", "multisteps"})
    """What not every placement of state is able to do."""
    paged: bool = False

    @property
    def factory(self):
        """The public function."""
        return getattr(optax_lamblion, self.name)

    @property
    def slots(self):
        """The names of the moments that the state holds."""
        return ("mu", "nu") if "nu" in self.state_type._fields else ("mu",)

    @property
    def takes_signs(self):
        """Whether its steps are signs."""
        return self.family == "lion"

    @property
    def has_ratio(self):
        """Whether a trust ratio scales its steps."""
        return self.family == "lamb"

    def __call__(self, **overrides):
        """The transformation, with some arguments replaced."""
        kwargs = {**self.kwargs, **overrides}
        if self.paged:
            kwargs["options"] = small_pages(kwargs.get("options"))
        return self.factory(**kwargs)

    @property
    def resident(self):
        """The row with the same numbers whose state stays on the device."""
        (row,) = (v for v in VARIANTS if v.name == self.name.removeprefix("paged_"))
        return row


def small_pages(options=None):
    """Options with which the large leaves of the test problems are paged."""
    return dataclasses.replace(options or StateOptions(), page_min_size=1000)


def promoting(factory):
    """An optimizer of Optax that cannot run under strict dtype promotion, made to."""

    def make(**kwargs):
        tx = factory(**kwargs)

        def update(updates, state, params=None):
            with jax.numpy_dtype_promotion("standard"):
                return tx.update(updates, state, params)

        return optax.GradientTransformation(tx.init, update)

    return make


optax_lamb = promoting(optax.lamb)


_FAMILIES = {
    "lion": dict(
        oracle=optax.lion,
        state_type=LionState,
        kwargs=dict(learning_rate=3e-3, weight_decay=1e-2),
    ),
    "lamb": dict(
        oracle=optax_lamb,
        state_type=LambState,
        kwargs=dict(learning_rate=1e-3, weight_decay=1e-2),
    ),
    "adamw": dict(
        oracle=promoting(optax.adamw),
        state_type=AdamState,
        kwargs=dict(learning_rate=2e-3, weight_decay=1e-2),
    ),
}
_PAGED = dict(paged=True, can=frozenset({"vmap"}))

VARIANTS = tuple(
    Variant(f"{prefix}{family}{bits}bit", family, bits, **shared, **placed)
    for family, shared in _FAMILIES.items()
    for prefix, placed in (("", {}), ("paged_", _PAGED))
    for bits in (8, 32)
)

ALIASES = {
    f"{prefix}{family}": f"{prefix}{family}32bit"
    for prefix in ("", "paged_")
    for family in _FAMILIES
}
"""Names without bits, and what they are: `test_arguments` shows that they are the same."""


QUICK = {"lion8bit", "lamb8bit", "lamb32bit", "adamw8bit", "paged_lion8bit"}
"""Every rule, precision and placement once: the rows of every day."""
SLOW = {"lion32bit", "adamw32bit", "paged_lamb8bit"}
"""Those that CI adds. The others are long: they have the rule, codec and placement of these."""


def row(v, among=VARIANTS):
    """A variant as a parameter, marked if others of its kind are run every day."""
    left_out = v.name not in QUICK and any(w.name in QUICK for w in among)
    marks = [mark_of(v)] if left_out else []
    return pytest.param(v, id=v.name, marks=marks)


def mark_of(v):
    """What marks a row that is not of every day."""
    return pytest.mark.slow if v.name in SLOW else pytest.mark.long


def every(condition=lambda v: True):
    """Parametrizes a test over the rows that satisfy a condition, as its argument `v`."""
    rows = rows_of(condition)
    return pytest.mark.parametrize("v", [row(v, rows) for v in rows])


def rows_of(condition):
    """The rows that satisfy a condition."""
    return [v for v in VARIANTS if condition(v)]
