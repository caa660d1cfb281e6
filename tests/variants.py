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
from optax_lamblion import LambState, LionState, StateOptions


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
        return ("mu",) if self.family == "lion" else ("mu", "nu")

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


def optax_lamb(**kwargs):
    """`optax.lamb`, which cannot run under strict dtype promotion, made to."""
    tx = optax.lamb(**kwargs)

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(updates, state, params)

    return optax.GradientTransformation(tx.init, update)


_LION = dict(
    family="lion",
    oracle=optax.lion,
    state_type=LionState,
    kwargs=dict(learning_rate=3e-3, weight_decay=1e-2),
)
_LAMB = dict(
    family="lamb",
    oracle=optax_lamb,
    state_type=LambState,
    kwargs=dict(learning_rate=1e-3, weight_decay=1e-2),
)

_PAGED = dict(paged=True, can=frozenset({"vmap"}))

VARIANTS = (
    Variant("lion", bits=32, **_LION),
    Variant("lion8bit", bits=8, **_LION),
    Variant("lion32bit", bits=32, **_LION),
    Variant("paged_lion", bits=32, **_LION, **_PAGED),
    Variant("paged_lion8bit", bits=8, **_LION, **_PAGED),
    Variant("paged_lion32bit", bits=32, **_LION, **_PAGED),
    Variant("lamb", bits=32, **_LAMB),
    Variant("lamb8bit", bits=8, **_LAMB),
    Variant("lamb32bit", bits=32, **_LAMB),
    Variant("paged_lamb", bits=32, **_LAMB, **_PAGED),
    Variant("paged_lamb8bit", bits=8, **_LAMB, **_PAGED),
    Variant("paged_lamb32bit", bits=32, **_LAMB, **_PAGED),
)


def every(condition=lambda v: True):
    """Parametrizes a test over the rows that satisfy a condition, as its argument `v`."""
    rows = [v for v in VARIANTS if condition(v)]
    return pytest.mark.parametrize("v", rows, ids=lambda v: v.name)
