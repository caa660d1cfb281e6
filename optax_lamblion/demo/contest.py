"""The optimizers of a family on the same arrays, and what is said of each after their turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import optax

from optax_lamblion.demo import timing
from optax_lamblion.demo.architectures import Shapes
from optax_lamblion.demo.optimizers import OPTIMIZERS, OptimizerRow
from optax_lamblion.demo.shapes import count

FAMILIES = ("lion", "lamb", "adamw")
COPY = "copy"
UPDATE, APPLY_FUSED = "update", "apply_fused"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contestant by its name.

    - `optimizer` names it, or is `COPY`.
    - `way` is how it steps: one of `timing.WAYS`, or a word of its own for what is not of ours.
    """

    optimizer: str
    way: str
    contestant: timing.Contestant

    @property
    def name(self) -> str:
        """What to call it where both ways of an optimizer are shown."""
        ours = self.optimizer in OPTIMIZERS and OPTIMIZERS[self.optimizer].ours
        return f"{self.optimizer}, {UPDATE}" if ours and self.way == UPDATE else self.optimizer


class Arrays:
    """What all entries step on: each with parameters of its own, and the same gradients."""

    def __init__(self, shapes: Shapes, dtype: str):
        self.shapes, self.dtype = shapes, dtype
        self.elements = count(shapes)
        self.gradients = timing.gradients(shapes, dtype)

    def carry(self, init) -> timing.Carry:
        """Parameters, and what an optimizer makes of them."""
        params = timing.parameters(self.shapes, self.dtype)
        return params, init(params)

    def entry(self, row: OptimizerRow, way: str, **arguments: Any) -> Entry:
        """An optimizer of this library or of Optax; arguments are those of its factory."""
        tx = optimizer(row, **arguments)
        program = timing.Program(
            timing.stepping(tx, way), self.carry(jax.jit(tx.init)), self.gradients
        )
        return Entry(row.name, way, program)

    def copy(self, row: OptimizerRow) -> Entry:
        """What moves the bytes that a step of this optimizer has to move."""
        carry = self.carry(jax.jit(optimizer(row).init))
        return Entry(COPY, COPY, timing.Program(timing.copying, carry, self.gradients))


def optimizer(row: OptimizerRow, **arguments: Any) -> optax.GradientTransformation:
    """What is timed: with weight decay, as most train."""
    return row.factory(row.learning_rate, weight_decay=row.weight_decay, **arguments)


def of_family(
    family: str, arrays: Arrays, bits: Sequence[int] = (32, 8), ways: Sequence[str] = timing.WAYS
) -> list[Entry]:
    """Optax's optimizer, to which all are compared; ours; and a copy of the bytes of the last."""
    ours = [OPTIMIZERS[f"{family}{n}bit"] for n in bits]
    return [
        arrays.entry(OPTIMIZERS[f"optax.{family}"], UPDATE),
        *(arrays.entry(row, way) for row in ours for way in ways),
        arrays.copy(ours[-1]),
    ]


def needed_bytes(shapes: Shapes, dtype: str) -> int:
    """About what the arrays of a family take, whose largest is LAMB or AdamW."""
    item = jax.numpy.dtype(dtype).itemsize
    # Gradients; Optax's parameters and slots; ours in 32 bits, twice; in 8 bits twice, and a copy.
    return count(shapes) * (item + 3 * item + 2 * (item + 8) + 3 * (item + 2))


def findings(entries: Sequence[Entry], times: Sequence[Sequence[float]], elements: int):
    """What is reported of each entry, as JSON has it.

    Ratios are to the first entry, and to the copy if there is one; see `timing.ratios`.
    """
    copies = [t for entry, t in zip(entries, times, strict=True) if entry.optimizer == COPY]
    return [
        {"optimizer": entry.optimizer, "way": entry.way, "baseline": entries[0].optimizer}
        | _of_times(measured, times[0], copies)
        | _of_program(entry.contestant, elements)
        for entry, measured in zip(entries, times, strict=True)
    ]


def _of_times(times, baseline, copies) -> dict[str, Any]:
    low, median, high = timing.quartiles(times)
    ratio_low, ratio, ratio_high = timing.ratios(times, baseline)
    found: dict[str, Any] = {
        "median_ms": median,
        "quartiles_ms": [low, high],
        "ratio": ratio,
        "ratio_quartiles": [ratio_low, ratio_high],
    }
    if copies:
        low, median, high = timing.ratios(times, copies[0])
        found |= {"of_copy": median, "of_copy_quartiles": [low, high]}
    return found | {"turns": len(times)}


def _of_program(contestant, elements) -> dict[str, Any]:
    """What is known of a compiled program; nothing of others."""
    if not isinstance(contestant, timing.Program):
        return {}
    return {
        "state_bytes_per_parameter": contestant.state_bytes / elements,
        "temporary_bytes": contestant.compiled.temporary_bytes,
        "trace_seconds": contestant.compiled.trace_seconds,
        "compile_seconds": contestant.compiled.compile_seconds,
    }
