"""The optimizers that the demo and the command line know by name.

A row says how to build an optimizer, which family it belongs to, and the learning rate and weight
decay that the demo gives it. An 8-bit row has its 32-bit relative's numbers: the question is what
happens when nothing but the bits changes.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import optax

import optax_lamblion as ol
from pallas_kernels.arithmetic.rules import ADAM, LAMB, LION, Rule

Factory = Callable[..., optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class OptimizerRow:
    """One optimizer of the comparison.

    - `rule` is the maths of its family, which Optax's optimizer shares.
    - `factory(learning_rate, weight_decay=...)` builds it.
    - `baseline` names Optax's optimizer of the same family, to which it is compared.
    - `learning_rate` and `weight_decay` are the demo's defaults.
    """

    name: str
    family: str
    rule: Rule
    bits: int
    factory: Factory
    baseline: str
    learning_rate: float
    weight_decay: float

    @property
    def ours(self) -> bool:
        """Whether this library provides it."""
        return self.name != self.baseline


def _family(family: str, rule: Rule, learning_rate, weight_decay, **shared):
    baseline = f"optax.{family}"
    ours = [f"{where}{family}{bits}" for where in ("", "paged_") for bits in _BITS]
    factories = {baseline: getattr(optax, family)} | {name: getattr(ol, name) for name in ours}
    for name, factory in factories.items():
        yield OptimizerRow(
            name=name,
            family=family,
            rule=rule,
            bits=8 if name.endswith("8bit") else 32,
            factory=functools.partial(factory, **shared),
            baseline=baseline,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )


_BITS = ("", "32bit", "8bit")

# Optax and this library have different defaults for `eps` and for the decay, so every number that
# enters the mathematics is given. Learning rates are the best of a sweep of Optax's own 32-bit
# optimizers on the text task (factors of 1.4 to 2, 300 steps, one seed); Lion's decay was swept on
# an earlier model of the same size. They are not tuned for the digits.
_ROWS = (
    *_family("lion", LION, learning_rate=1e-3, weight_decay=1.0, b1=0.9, b2=0.99),
    *_family("lamb", LAMB, learning_rate=1e-2, weight_decay=0.01, b1=0.9, b2=0.999, eps=1e-6),
    *_family("adamw", ADAM, learning_rate=4e-3, weight_decay=0.01, b1=0.9, b2=0.999, eps=1e-8),
)

OPTIMIZERS: Mapping[str, OptimizerRow] = MappingProxyType({row.name: row for row in _ROWS})


def find_optimizers(names: str) -> list[OptimizerRow]:
    """The rows for a comma-separated list of names; raises `ValueError` for a name it lacks."""
    rows = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in OPTIMIZERS:
            raise ValueError(
                f"Unknown optimizer {name!r}. {did_you_mean(name, OPTIMIZERS)}"
                f"Choose from: {', '.join(OPTIMIZERS)}."
            )
        if OPTIMIZERS[name] in rows:
            raise ValueError(f"Optimizer {name!r} is listed twice. Name each one once.")
        rows.append(OPTIMIZERS[name])
    if not rows:
        raise ValueError(f"No optimizer was named. Choose from: {', '.join(OPTIMIZERS)}.")
    return rows


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question about the known names that are like an unknown one; nothing if there are none."""
    near = difflib.get_close_matches(name.lower(), known, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}? " if near else ""


def training_chain(
    row: OptimizerRow,
    *,
    steps: int,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    param_rounding: str = "nearest",
) -> optax.GradientTransformation:
    """The optimizer as one trains with it: clipping, a warm-up, a cosine decay, weight decay.

    `param_rounding` is that of `StateOptions`, which Optax's optimizers do not have.
    """
    peak = row.learning_rate if learning_rate is None else learning_rate
    decay = row.weight_decay if weight_decay is None else weight_decay
    warmup = max(1, steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.1 * peak,
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=0.05 * peak,
    )
    more = {"options": ol.StateOptions(param_rounding=param_rounding)} if row.ours else {}
    return optax.chain(
        ol.clip_by_global_norm(1.0),
        row.factory(schedule, weight_decay=decay, **more),
    )
