"""How a run keeps its parameters between steps: in float32, or in 16 bits, rounded in some way.

Between the ways of one comparison nothing differs but what is stored. All start at the same values,
which 16 bits hold. The model reads its parameters as they are stored and computes in float32, and
so come its gradients, whatever the dtype of the parameters: a pass in 16 bits would round
activations and gradients as well, and a comparison with float32 parameters would measure that. (It
also means that float16 needs no loss scaling.) And all step through `apply_fused`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_lamblion as ol
from optax_lamblion.demo.optimizers import OptimizerRow, training_chain
from pallas_kernels.arithmetic.params import ROUNDINGS

HALVES = ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Way:
    """One of the ways that are compared to keep parameters.

    - `half` is the dtype of 16 bits that the comparison is about.
    - `rounding` is how parameters of it are written, one of `ROUNDINGS`; None keeps float32.
    """

    half: str
    rounding: str | None = None

    @property
    def name(self) -> str:
        """The way in words, as results have it behind the name of the optimizer."""
        return f"{self.half} {self.rounding}" if self.rounding else "float32"

    @property
    def dtype(self) -> str:
        """What parameters are stored in."""
        return self.half if self.rounding else "float32"

    def start(self, params: Any) -> Any:
        """The parameters to start at: of all ways the same values."""
        return _cast(_cast(params, self.half), self.dtype)

    def weights(self, params: Any, state: Any) -> Any:
        """All that is known of the parameters, in float32: what one would evaluate and export."""
        if self.rounding == "compensated":
            return ol.full_precision(params, state)
        return in_float32(params)

    def halved(self, params: Any) -> Any:
        """The parameters in 16 bits, as values of float32: what one would deploy in 16 bits."""
        return in_float32(_cast(params, self.half))


class Entry(NamedTuple):
    """An optimizer in a comparison, by the name that results carry."""

    name: str
    row: OptimizerRow
    way: Way | None = None
    """None leaves parameters as the task has them, and steps with `tx.update`."""

    def optimizer(self, **arguments: Any) -> optax.GradientTransformation:
        """What steps so; the arguments are those of `training_chain`."""
        if self.way and not self.row.ours:
            return _seeing_float32(training_chain(self.row, **arguments))
        rounding = (self.way and self.way.rounding) or "nearest"
        return training_chain(self.row, **arguments, param_rounding=rounding)


def entries(
    rows: Sequence[OptimizerRow], dtype: str = "float32", roundings: Sequence[str] = ROUNDINGS
) -> list[Entry]:
    """What is compared: each optimizer once, or for a dtype of 16 bits in several ways.

    These are float32 parameters and those of `dtype` with each rounding. Optax's optimizers know
    one rounding, to the nearest number.
    """
    if dtype == "float32":
        return [Entry(row.name, row) for row in rows]
    found = []
    for row in rows:
        known = [name for name in roundings if row.ours or name == "nearest"]
        ways = [Way(dtype, rounding) for rounding in (None, *known)]
        found += [Entry(f"{row.name}, {way.name}", row, way) for way in ways]
    return found


def in_float32(tree: Any) -> Any:
    """A tree of arrays in float32."""
    return _cast(tree, jnp.float32)


def _seeing_float32(tx):
    """`tx`, shown parameters in float32, as the state of Optax's has the dtype of what it sees."""

    def update(updates, state, params=None):
        return tx.update(updates, state, None if params is None else in_float32(params))

    return optax.GradientTransformation(lambda params: tx.init(in_float32(params)), update)


def _cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
