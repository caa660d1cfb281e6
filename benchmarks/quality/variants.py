"""What is compared: three rules, and the ways to store their moments.

A rule and a way make an Optax transformation whose update is the direction of a step. All numbers
but those of the storage are the same within a rule: those of the demo (`optax_lamblion/demo`).
"""

from typing import NamedTuple

from benchmarks.quality import bitsandbytes
from optax_lamblion import StateOptions, scale_by_adam, scale_by_lamb, scale_by_lion
from optax_lamblion.demo.optimizers import OPTIMIZERS

LEAST = 512
"""Leaves with fewer elements keep float32 state. The models are small, so it is less than the 4,096
of the library and of bitsandbytes."""


class Rule(NamedTuple):
    """An optimizer's rule with its numbers.

    - `ours` and `theirs` make its direction, with state of this library and of bitsandbytes.
    - `weight_decay` is added to the direction afterwards; that of LAMB is part of `numbers`.
    """

    name: str
    title: str
    ours: object
    theirs: object
    numbers: dict
    learning_rate: float
    weight_decay: float


_LION, _LAMB, _ADAMW = (OPTIMIZERS[f"{x}8bit"] for x in ("lion", "lamb", "adamw"))
RULES = {
    "lion": Rule(
        "lion", "Lion", scale_by_lion, bitsandbytes.scale_by_lion, dict(b1=0.9, b2=0.99),
        _LION.learning_rate, _LION.weight_decay,
    ),
    "lamb": Rule(
        "lamb", "LAMB", scale_by_lamb, bitsandbytes.scale_by_lamb,
        dict(b1=0.9, b2=0.999, eps=1e-6, weight_decay=_LAMB.weight_decay),
        _LAMB.learning_rate, 0.0,
    ),
    "adamw": Rule(
        "adamw", "AdamW", scale_by_adam, bitsandbytes.scale_by_adam,
        dict(b1=0.9, b2=0.999, eps=1e-8), _ADAMW.learning_rate, _ADAMW.weight_decay,
    ),
}  # fmt: skip


class Way(NamedTuple):
    """A way to store moments: a codec of this library, bitsandbytes', or float32.

    `moved` is how far the start is moved, relatively and at random: a training in float32 from
    there says what any rounding does to a loss.
    """

    name: str
    codec: str | None = None
    block_size: int | None = None
    moved: float = 0.0

    def direction(self, rule):
        """The transformation whose updates are the directions of a rule."""
        if self.codec is None:
            return rule.ours(**rule.numbers, bits=32)
        sizes = dict(block_size=self.block_size, min_8bit_size=LEAST)
        if self.codec == "bitsandbytes":
            return rule.theirs(**rule.numbers, **sizes)
        options = StateOptions(codec=self.codec, **sizes)
        return rule.ours(**rule.numbers, bits=8, options=options)


FLOAT32 = Way("float32")
MOVED = Way("float32, start moved by 1e-6", moved=1e-6)
DEFAULT = Way("power, 256", "power", 256)
BITSANDBYTES = Way("bitsandbytes, 256", "bitsandbytes", 256)
_GRID = {
    (codec, size): Way(f"{codec}, {size}", codec, size)
    for codec in ("power", "dynamic", "linear")
    for size in (64, 256, 2048)
}
CODED = (*_GRID.values(), BITSANDBYTES)
"""The 8-bit ways, which synthetic gradients compare."""
TRAINED = (
    FLOAT32,
    MOVED,
    *(_GRID["power", size] for size in (64, 256, 2048)),
    *(_GRID[codec, 256] for codec in ("dynamic", "linear")),
    BITSANDBYTES,
)
"""The ways of the trainings: the default's codec with all blocks, and others with its blocks."""
