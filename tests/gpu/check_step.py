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
import jax.numpy as jnp
import numpy as np

from pallas_kernels.arithmetic import rules
from pallas_kernels.mosaic import step as mosaic
from pallas_kernels.xla import step as xla
from pallas_kernels.arithmetic.blocks import as_rows
from pallas_kernels.arithmetic.pieces import GRAIN
from pallas_kernels.arithmetic.shards import Place
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
    lost: tuple[int, ...] = ()
    """Blocks whose old scales are no numbers."""
    count_skipped: bool = False
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
        words += [f"lost={list(self.lost)}"] * bool(self.lost) + ["count"] * self.count_skipped
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
        # The first tile has what is to be skipped, the second has not, the rest has.
        poison = POISON | {8200: np.nan}
        yield Case(rule, emit, (33, 256), "float32", poison=poison, count_skipped=True)
        yield Case(rule, emit, (9, 512), poison=POISON, lost=(1, 3), count_skipped=True)
    yield Case(rule, "params", (5000,), codec="dynamic", poison=POISON)
    yield Case(rule, "params", zeros=True)
    yield Case(rule, "updates", zeros=True, fresh=True)
    yield Case(rule, "params", FLAT, fresh=True)
    for block, emit in zip((32, 64, 128, 512, 1024), itertools.cycle(EMITS), strict=False):
        yield Case(rule, emit, (33, 1024), block=block)
        yield Case(rule, emit, (50001,), "float32", "float32", block=block)
    yield Case(rule, "params", decay="coupled", change={"grad_scale": 0.37})
    yield Case(rule, "params", (40, 1024), count_skipped=True)
    if rule.from_old:
        yield Case(rule, "updates", decay=None, has_params=False)
    else:
        yield Case(rule, "params", change={"ratio_scale": 0.5, "ratio_high": 1.0})
        yield Case(rule, "params", change={"ratio_low": 0.01, "ratio_high": 0.02})


PARTS = (2 * GRAIN + 4700,), (66, 2048)
"""Shapes of leaves that are stepped part by part: in pieces, and as shards."""


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
    for shape in PARTS:
        if not run.tiny:
            case = Case(rule, "updates", shape, "float32", "float32", count_skipped=True)
            yield (
                f"pieces have the bits of the leaf: {case.name}",
                functools.partial(_in_pieces, case, run),
            )
    if not run.tiny:
        case = Case(rule, "updates", (64, 2048), "float32", "float32")
        yield (
            f"shards have the bits of the tensor: {case.name}",
            functools.partial(_in_shards, case, run),
        )


lion = functools.partial(checks, rules.LION)
lamb = functools.partial(checks, rules.LAMB)
lamb_amsgrad = functools.partial(checks, rules.LAMB_AMSGRAD)


def _by_kernels(function, run, *static):
    """A function of `mosaic`, compiled, or in the interpreter."""
    if run.interpret:
        from tests.kernels.interpreted import INTERPRET

        function = functools.partial(function, interpret=INTERPRET)
    return jax.jit(functools.partial(function, *static))


def _check(case, run):
    spec, given = comparing.spec(case), comparing.inputs(case)
    kernel = jax.block_until_ready(_by_kernels(mosaic.step, run, spec)(*given))
    general = jax.block_until_ready(jax.jit(functools.partial(xla.step, spec))(*given))
    return comparing.judge(case, given, kernel, general)


def _in_pieces(case, run):
    """A leaf in two pieces, of which the second begins after a grain."""
    spec, given = comparing.spec(case), comparing.inputs(case)
    g, p, slots, absmaxes, s, dither = given
    whole = _by_kernels(mosaic.step, run, spec)(*given)
    of_whole = [x.reshape(-1) for x in (*whole.slots, *whole.absmaxes)]
    skipped = 0.0
    for first, last in ((0, 1), (1, None)):
        part = slice(first * GRAIN, None if last is None else last * GRAIN)
        blocks = slice(part.start // case.block, None if last is None else part.stop // case.block)
        codes = tuple(as_rows(x.reshape(-1)[part], case.block) for x in slots)
        scales = tuple(a.reshape(-1)[blocks] for a in absmaxes)
        step = mosaic.moments_piece if spec.rule.trust_ratio else mosaic.step_piece
        target = () if spec.rule.trust_ratio else (jnp.zeros(g.shape, g.dtype),)
        arrays = g, p, *target, jnp.int32(first), codes, scales, s, dither
        made = _by_kernels(step, run, spec)(*arrays)
        new_codes, new_scales = made[:2] if spec.rule.trust_ratio else made[1:3]
        for seen, expected, where in zip(
            (*new_codes, *new_scales),
            of_whole,
            [part] * len(slots) + [blocks] * len(slots),
            strict=True,
        ):
            np.testing.assert_array_equal(seen.reshape(-1), expected[where])
        skipped += float(made[-1])
    assert skipped == float(whole.skipped)
    return {"elements": math.prod(case.shape)}


def _in_shards(case, run):
    """A tensor in shards of whole tiles, divided along both axes."""
    spec, given = comparing.spec(case), comparing.inputs(case)
    *arrays, s, dither = given
    whole = _by_kernels(mosaic.step, run, spec)(*given)
    rows, columns = case.shape[0] // 2, case.shape[1] // 2
    for i, j in itertools.product(range(2), range(2)):

        def shard(x, i=i, j=j):
            a, b = (n // 2 for n in x.shape)
            return x[i * a : (i + 1) * a, j * b : (j + 1) * b]

        place = Place(case.shape, (rows, columns), (jnp.uint32(i * rows), jnp.uint32(j * columns)))
        here = jax.tree.map(shard, tuple(arrays))
        made = _by_kernels(mosaic.step, run, spec)(*here, s, dither._replace(place=place))
        expected = jax.tree.map(shard, (whole.slots, whole.absmaxes))
        jax.tree.map(np.testing.assert_array_equal, (made.slots, made.absmaxes), expected)
    return {"elements": math.prod(case.shape)}
