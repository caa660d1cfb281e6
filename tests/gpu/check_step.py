"""The kernels and XLA make the same step of the same leaf, on this GPU, but for what is explained.

Cases vary one thing at a time around a middle, except for shape, dtypes and what is returned, which
go through all combinations that matter together.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.arithmetic import rules
from pallas_kernels.arithmetic.blocks import as_rows
from pallas_kernels.arithmetic.pieces import GRAIN
from pallas_kernels.arithmetic.shards import Place
from pallas_kernels.leaf import StoredSlot
from pallas_kernels.mosaic import step as mosaic
from pallas_kernels.mosaic.tile import INTERPRET
from pallas_kernels.xla import step as xla
from tests.gpu import comparing
from tests.steps import leaf_of, scalars_of, with_residual

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
NUMBERS = {
    "sign": dict(b1=0.9, b2=0.99, weight_decay=0.1, step_size=-(2.0**-7)),
    "value": dict(b1=0.9, b2=0.999, weight_decay=0.01, step_size=-(2.0**-7)),
}
"""Of a step, by the form of its rule."""


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
    rounding: str = "nearest"
    """Of parameters of 16 bits."""
    odd: bool = False
    """Whether there are parameters that are no numbers, zeros, or the largest that there are."""

    @property
    def scalars(self):
        """With numbers that are not dyadic, as users have them."""
        numbers = NUMBERS[self.rule.form] | self.change
        return scalars_of(self.rule, jnp.float32(comparing.STEP), **numbers)

    @property
    def name(self):
        """What is particular to the case."""
        words = [self.rule.name, self.emit, "x".join(map(str, self.shape)), f"p={self.p}"]
        words += [f"g={self.g}", f"block={self.block}", self.codec, f"decay={self.decay}"]
        words += ["poison"] * bool(self.poison) + ["zeros"] * self.zeros + ["fresh"] * self.fresh
        words += [f"lost={list(self.lost)}"] * bool(self.lost) + ["count"] * self.count_skipped
        words += ["no params"] * (not self.has_params) + ["odd params"] * self.odd
        words += [f"{k}={v}" for k, v in self.change.items()]
        words += [self.rounding] * (self.rounding != "nearest")
        return " ".join(words)


def cases(rule):
    """All cases of a rule, the most telling ones first."""
    dtypes = itertools.cycle(DTYPES)
    for shape, emit in itertools.product(SHAPES, EMITS):
        p, g = next(dtypes)
        yield Case(rule, emit, shape, p, g)
    yield from rounded(rule)
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
    if not rule.ratio:
        yield Case(rule, "updates", decay=None, has_params=False)
    else:
        yield Case(rule, "params", change={"ratio_scale": 0.5, "ratio_high": 1.0})
        yield Case(rule, "params", change={"ratio_low": 0.01, "ratio_high": 0.02})


SMALL_STEP = {"step_size": -(2.0**-12)}
"""Less than half a unit of most parameters of 16 bits."""


def rounded(rule):
    """Steps whose parameters are not rounded to the nearest."""
    for rounding in ("stochastic", "compensated"):
        made = functools.partial(Case, rule, "params", change=SMALL_STEP, rounding=rounding)
        yield made(TILES, decay=None)
        yield made(FLAT, g="float32", poison=POISON)
        yield made((40, 1024), "float16", "float16", decay="coupled", poison=POISON)
        if not rule.ratio:  # or all of the leaf would be lost
            yield made((33, 256), decay=None, odd=True)


PARTS = (2 * GRAIN + 4700,), (66, 2048)
"""Shapes of leaves that are stepped part by part: in pieces, and as shards."""


class Kernels(NamedTuple):
    """What steps a leaf: functions as of `dispatch.Implementation.steps`."""

    step: Callable
    moments: Callable


def by_mosaic(run):
    """Mosaic's kernels, in the interpreter if a run asks for that."""

    def kernels(function):
        return lambda leaf: function(leaf, interpret=INTERPRET if run.interpret else None)

    return Kernels(kernels(mosaic.step), kernels(mosaic.moments))


def checks(rule, run, kernels=None):
    """`(name, function)` for each case that a run asks for, of Mosaic's kernels or others."""
    kernels = kernels or by_mosaic(run)
    for i, case in enumerate(cases(rule)):
        if run.interpret and math.prod(case.shape) > 2**17:
            continue
        skipped = (
            i != (5 if rule.ratio else 2) if run.tiny else run.quick and i % 4 and not case.poison
        )
        if skipped:
            continue
        yield case.name, functools.partial(check, case, kernels)
    for shape in PARTS:
        if not run.tiny:
            case = Case(rule, "updates", shape, "float32", "float32", count_skipped=True)
            yield (
                f"pieces have the bits of the leaf: {case.name}",
                functools.partial(_in_pieces, case, kernels),
            )
    if not run.tiny:
        case = Case(rule, "updates", (64, 2048), "float32", "float32")
        yield (
            f"shards have the bits of the tensor: {case.name}",
            functools.partial(_in_shards, case, kernels),
        )
    if rule.form == "sign" and not run.tiny:
        for rounding, (shape, parts) in itertools.product(
            ("stochastic", "compensated"),
            ((PARTS[0], _in_pieces), ((64, 2048), _in_shards)),
        ):
            case = Case(rule, "params", shape, decay=None, rounding=rounding, count_skipped=True)
            which = "pieces" if parts is _in_pieces else "shards"
            yield (
                f"{which} have the parameters of the leaf: {case.name}",
                functools.partial(parts, case, kernels),
            )


lion = functools.partial(checks, rules.LION)
adam = functools.partial(checks, rules.ADAM)
lamb = functools.partial(checks, rules.LAMB)
lamb_amsgrad = functools.partial(checks, rules.LAMB_AMSGRAD)


def check(case, kernels):
    """Raises `AssertionError`, or returns what was seen of a case."""
    spec, given = comparing.spec(case), comparing.inputs(case)
    steps = with_residual(kernels.step), with_residual(xla.step)
    kernel, general = (jax.jit(functools.partial(step, spec))(*given) for step in steps)
    return comparing.judge(case, given, kernel, general)


def _leaf_of(case):
    *arrays, dither = comparing.inputs(case)[:6]
    residual = comparing.inputs(case)[6:] or (None,)
    return leaf_of(comparing.spec(case), *arrays, dither, residual=residual[0])


def _in_pieces(case, kernels):
    """A leaf in two pieces, of which the second begins after a grain."""
    leaf = _leaf_of(case)
    whole = jax.jit(kernels.step)(leaf)
    step = jax.jit(kernels.moments if case.rule.ratio else kernels.step)
    target = leaf.p if case.emit == "params" else jnp.zeros(case.shape, case.g)
    skipped = 0.0
    for first, last in ((0, 1), (1, None)):

        def part(x, n, first=first, last=last):
            return x.reshape(-1)[first * n : None if last is None else last * n]

        def piece(slot, part=part):
            values, absmax = part(slot.values, GRAIN), part(slot.absmax, GRAIN // case.block)
            return StoredSlot(as_rows(values, case.block), absmax)

        residual = None if leaf.residual is None else part(leaf.residual, GRAIN)
        slots = tuple(map(piece, leaf.slots))
        here = leaf.replace(slots=slots, residual=residual, start=jnp.int32(first))
        made = step(here.replace(target=target))
        jax.tree.map(np.testing.assert_array_equal, made.slots, tuple(map(piece, whole.slots)))
        if residual is not None:
            np.testing.assert_array_equal(made.residual, part(whole.residual, GRAIN))
        target = target if case.rule.ratio else made.out
        skipped += float(made.skipped)
    assert skipped == float(whole.skipped)
    if case.emit == "params":
        np.testing.assert_array_equal(target, whole.out)
    return {"elements": math.prod(case.shape)}


def _in_shards(case, kernels):
    """A tensor in shards of whole tiles, divided along both axes."""
    leaf = _leaf_of(case)
    step = jax.jit(kernels.step)
    whole = step(leaf)
    rows, columns = case.shape[0] // 2, case.shape[1] // 2
    for i, j in itertools.product(range(2), range(2)):

        def shard(x, i=i, j=j):
            a, b = (n // 2 for n in x.shape)
            return x[i * a : (i + 1) * a, j * b : (j + 1) * b]

        place = Place(case.shape, (rows, columns), (jnp.uint32(i * rows), jnp.uint32(j * columns)))
        g, p, slots, residual = jax.tree.map(shard, (leaf.g, leaf.p, leaf.slots, leaf.residual))
        here = leaf.replace(g=g, p=p, slots=slots, residual=residual)
        made = step(here.replace(dither=leaf.dither._replace(place=place)))
        expected = jax.tree.map(shard, whole.slots)
        jax.tree.map(np.testing.assert_array_equal, made.slots, expected)
        if case.emit == "params":
            expected = jax.tree.map(shard, (whole.out, whole.residual))
            jax.tree.map(np.testing.assert_array_equal, (made.out, made.residual), expected)
    return {"elements": math.prod(case.shape)}
