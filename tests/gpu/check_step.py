"""The kernels and XLA make the same step of the same leaf, on this GPU, but for what is explained.

Cases vary one thing at a time around a middle, except for shape, dtypes and what is returned, which
go through all combinations that matter together.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import numpy as np

from pallas_kernels import mosaic, rules, xla
from tests.gpu import comparing

TILES = (4096, 4096)
FLAT = (50001, 77)
"""No whole blocks in its rows: seen as one vector, with a rest after the last tile."""
SHAPES = ((4096,), (4097,), (9, 512), (3, 5, 7, 64), (40, 1024), FLAT, TILES)
DTYPES = (  # of parameters and gradients
    ("bfloat16", "bfloat16"),
    ("float32", "float32"),
    ("float32", "bfloat16"),
    ("float16", "float16"),
    ("bfloat16", "float32"),
    ("float16", "bfloat16"),
    ("float32", "float16"),
)
EMITS = ("params", "updates")
POISON = {3: np.nan, 300: np.inf, 301: -np.inf, 700: 1e38, 1500: -1e25, 4096: np.nan}
LION = rules.Scalars(
    b1=0.9, one_minus_b1=0.1, b2=0.99, one_minus_b2=0.01, weight_decay=0.1, step_size=-(2.0**-7)
)
LAMB = rules.Scalars(
    debias1=1 / (1 - 0.9**5), debias2=1 / (1 - 0.999**5), weight_decay=0.01, step_size=-(2.0**-7)
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One step of one leaf."""

    rule: rules.Rule
    emit: str
    shape: tuple[int, ...] = (9, 512)
    p: str = "bfloat16"
    g: str = "bfloat16"
    block: int = 256
    codec: str = "power"
    decay: str | None = "decoupled"
    poison: dict[int, float] = dataclasses.field(default_factory=dict)
    zeros: bool = False
    fresh: bool = False
    has_params: bool = True
    change: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of scalars."""

    @property
    def scalars(self):
        """With numbers that are not dyadic, as users have them."""
        return (LION if self.rule.from_old else LAMB)._replace(**self.change)

    @property
    def name(self):
        """What is particular to the case."""
        words = [self.rule.name, self.emit, "x".join(map(str, self.shape)), f"p={self.p}"]
        words += [f"g={self.g}", f"block={self.block}", self.codec, f"decay={self.decay}"]
        words += ["poison"] * bool(self.poison) + ["zeros"] * self.zeros + ["fresh"] * self.fresh
        words += ["no params"] * (not self.has_params) + [
            f"{k}={v}" for k, v in self.change.items()
        ]
        return " ".join(words)


def cases(rule):
    """All cases of a rule, the most telling ones first."""
    dtypes = itertools.cycle(DTYPES)
    for shape, emit in itertools.product(SHAPES, EMITS):
        p, g = next(dtypes)
        yield Case(rule, emit, shape, p, g)
    for (p, g), emit in zip(DTYPES, itertools.cycle(EMITS), strict=False):
        yield Case(rule, emit, (17, 1024), p, g)
    for codec, emit in itertools.product(("dynamic", "linear"), EMITS):
        yield Case(rule, emit, FLAT if emit == "params" else (9, 512), "float32", codec=codec)
    for emit in EMITS:
        yield Case(rule, emit, (3, 5, 7, 64), poison=POISON)
        yield Case(rule, emit, (9, 512), "float32", "float32", decay="coupled", poison=POISON)
        yield Case(rule, emit, (4099,), decay=None)
    yield Case(rule, "params", (5000,), codec="dynamic", poison=POISON)
    yield Case(rule, "params", zeros=True)
    yield Case(rule, "updates", zeros=True, fresh=True)
    yield Case(rule, "params", FLAT, fresh=True)
    for block, emit in zip((32, 64, 128, 512, 1024), itertools.cycle(EMITS), strict=False):
        yield Case(rule, emit, (33, 1024), block=block)
        yield Case(rule, emit, (50001,), "float32", "float32", block=block)
    yield Case(rule, "params", decay="coupled", change={"grad_scale": 0.37})
    if rule.from_old:
        yield Case(rule, "updates", decay=None, has_params=False)
    else:
        yield Case(rule, "params", change={"ratio_scale": 0.5, "ratio_high": 1.0})
        yield Case(rule, "params", change={"ratio_low": 0.01, "ratio_high": 0.02})


def checks(rule, run):
    """`(name, function)` for each case that a run asks for."""
    for i, case in enumerate(cases(rule)):
        if run.interpret and math.prod(case.shape) > 2**17:
            continue
        skipped = (
            i != (2 if rule.from_old else 5)
            if run.tiny
            else run.quick and i % 4 and not case.poison
        )
        if skipped:
            continue
        yield case.name, functools.partial(_check, case, run)


lion = functools.partial(checks, rules.LION)
lamb = functools.partial(checks, rules.LAMB)
lamb_amsgrad = functools.partial(checks, rules.LAMB_AMSGRAD)


def _check(case, run):
    spec, given = comparing.spec(case), comparing.inputs(case)
    step = functools.partial(mosaic.step, spec)
    if run.interpret:
        from tests.kernels.interpreted import INTERPRET

        step = functools.partial(step, interpret=INTERPRET)
    kernel = jax.block_until_ready(jax.jit(step)(*given))
    general = jax.block_until_ready(jax.jit(functools.partial(xla.step, spec))(*given))
    return comparing.judge(case, given, kernel, general)
