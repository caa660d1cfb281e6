"""Generated kernels, executed in NumPy, do what XLA does, and what the float64 oracles say.

So the writer is judged where there is neither a GPU nor a compiler for one. The judges are those of
the other kernels.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels.arithmetic import hashing
from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.tiled import quantize as tiled
from pallas_kernels.tiled.running import Sums
from pallas_kernels.triton import launch
from pallas_kernels.triton.tile import BLOCK_SIZES
from tests import oracles
from tests.gpu import check_step
from tests.kernels import (
    test_broken_numbers,
    test_param_rounding_kernels,
    test_pieces,
    test_places,
    test_rules_against_oracle,
)
from tests.kernels import test_mosaic as steps
from tests.kernels.codec_judge import KINDS, check_layout, level_error, sample
from tests.kernels.test_mosaic import Leaf, identity
from tests.optimizers import test_stacked
from tests.steps import on_arrays
from tests.triton import standing_in
from tests.triton.standing_in import BY_TRITON, everywhere, executed

STEP = executed(on_arrays(BY_TRITON.step))
MODULE = types.SimpleNamespace(**{name: executed(f) for name, f in vars(BY_TRITON).items()})

# Of what differs between implementations: tiles, their masks, and both ways to emit a step.
LEAVES = [
    *(Leaf(shape=shape) for shape in [(4096,), (35, 256), (4097,), (3, 5, 7, 64)]),
    *(Leaf(shape=(20_001,), block=block, bad=False) for block in BLOCK_SIZES),
    Leaf(shape=(9, 4096), block=4096, g="bfloat16", emit="updates"),
    Leaf(p="bfloat16", g="float16"),
    Leaf(codec="dynamic", emit="updates", decay="coupled"),
    Leaf("lamb", shape=(4097,), p="bfloat16", g="bfloat16"),
    Leaf("lamb", shape=(4, 2048), emit="updates"),
    Leaf("lamb_amsgrad", codec="dynamic", block=2048),
    Leaf("adam", codec="linear", g="bfloat16"),
    Leaf("signum", emit="updates"),
]
LEAVES += [pytest.param(x, marks=pytest.mark.long) for x in steps.LEAVES if x not in LEAVES]


@pytest.mark.parametrize("leaf", LEAVES, ids=identity)
def test_a_kernel_does_what_xla_does(leaf):
    steps.test_a_kernel_does_what_xla_does(STEP, leaf)


ROUNDED = {
    ("lion", "ragged", "compensated"),
    ("lion", "odd", "stochastic"),
    ("lion", "odd", "compensated"),
    ("lamb", "float16", "stochastic"),
    ("adam", "tile and rows", "compensated"),
}


@pytest.mark.parametrize("case", test_param_rounding_kernels.cases(ROUNDED))
def test_parameters_are_rounded_as_the_oracle_and_xla_say(case):
    check_step.check(case, check_step.Kernels(MODULE.step, MODULE.moments))


@pytest.mark.parametrize("name", test_param_rounding_kernels.in_parts())
def test_parts_of_a_leaf_are_rounded_as_the_leaf_is(name):
    kernels = check_step.Kernels(MODULE.step, MODULE.moments)
    test_param_rounding_kernels.in_parts(kernels)[name]()


DAILY = [
    *("lion8bit-power-mixed", "lamb8bit-power-bfloat16", "adamw8bit-dynamic-mixed"),
    "lion8bit-blocks_of_4096",
]
CASES = DAILY + [
    pytest.param(name, marks=pytest.mark.long)
    for name in test_rules_against_oracle.KERNEL_CASES
    if name not in DAILY
]


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_what_the_oracle_says(name):
    case = test_rules_against_oracle.CASES[name]
    with everywhere() as launched:
        observed = test_rules_against_oracle._observe(case)
    assert launched
    hyper = dataclasses.replace(case.hyper, **test_rules_against_oracle.KERNEL)
    judge = test_rules_against_oracle.judge_adam
    if name.startswith("lion"):
        judge = test_rules_against_oracle.judge_lion
    for leaf, seen in observed.items():
        decay = hyper.weight_decay * (leaf != "undecayed_4d")
        judge(seen, dataclasses.replace(hyper, weight_decay=decay))


@pytest.mark.parametrize("rule", ["lion", "lamb"])
@pytest.mark.parametrize("emit", ["params", "updates"])
@pytest.mark.parametrize("value", [np.nan, 1e30], ids=str)
def test_what_is_left_alone_is_counted(rule, emit, value):
    test_broken_numbers.test_what_is_left_alone_is_counted(STEP, emit, rule, value)


@pytest.mark.parametrize("rule", ["lion", "lamb", "adam"])
@pytest.mark.parametrize("block", [1, test_broken_numbers.SHAPE[0] - 1])
def test_a_momentum_that_is_no_number_is_seen(rule, block):
    test_broken_numbers.test_a_momentum_that_is_no_number_is_seen(
        STEP, "params", rule, np.nan, block
    )


# By a ragged leaf, and one in rows.
@pytest.mark.parametrize(
    "leaf",
    [test_pieces.LEAVES[0], pytest.param(test_pieces.LEAVES[6], marks=pytest.mark.long)],
    ids=identity,
)
def test_pieces_do_what_the_leaf_does(leaf, monkeypatch):
    by_grains = property(lambda sums: jnp.sum(sums.of_grains(), axis=0))
    monkeypatch.setattr(Sums, "total", by_grains)
    arrays = leaf.arrays()
    whole = jax.jit(functools.partial(STEP, leaf.spec))(*arrays)
    pieces = jax.jit(lambda *arrays: test_pieces.in_pieces(MODULE, leaf.spec, arrays))(*arrays)
    test_pieces.compare(whole, pieces, exact=leaf.spec.rule.reads == "old")


def test_shards_step_as_the_leaf_does(monkeypatch):
    monkeypatch.setattr(test_places, "Kernels", MODULE)
    monkeypatch.setattr(test_places, "interpreted_step", STEP)
    test_places.test_shards_step_as_the_leaf_does("kernels", (32, 1024), (2, 2))


@pytest.mark.parametrize("clip", [None, pytest.param(5, marks=pytest.mark.long)])
def test_layers_of_a_stack_have_scalars_of_their_own(clip, monkeypatch):
    monkeypatch.setattr(test_stacked, "interpreted", everywhere)
    test_stacked.test_kernels_do_what_xla_does(clip)


# -------------------------------------------------------------------------------------- arrays


def quantized(x, codec, signed, key=None, block=256, keep_nonzero=False):
    kind = get_codec(codec, signed)
    return executed(tiled.quantize)(launch.BACKEND, x, key, block, kind, keep_nonzero)


@KINDS
@pytest.mark.parametrize("shape, block", [((9001,), 256), ((9, 512), 64), ((20_000,), 4096)])
def test_codes_are_the_nearest_and_back(codec, signed, shape, block):
    x = sample(shape, signed=signed)
    codes, absmax = quantized(x, codec, signed, block=block)
    check_layout(x, codes, absmax, block)
    y = oracles.normalize(np.asarray(x, np.float64), absmax, block)
    excess, gap = oracles.nearest_excess(y, codes, codec, signed)
    assert (excess <= 1e-3 * gap).all()  # the tie of `tiled.ladders.for_kernel`
    kind = get_codec(codec, signed)
    back = executed(tiled.dequantize)(launch.BACKEND, codes, absmax, block, kind, jnp.float32)
    back = np.asarray(back, np.float64)
    exact = oracles.decode(codes, absmax, block, codec, signed)
    # The level's error, and the product's rounding.
    assert (np.abs(back - exact) <= (level_error(codec, signed) + 2.0**-24) * np.abs(exact)).all()


@pytest.mark.parametrize("codec, signed", [("power", False), ("dynamic", False), ("power", True)])
def test_random_rounding_is_that_of_xla(codec, signed):
    x = sample((9001,), signed=signed)
    expected, _ = pallas_kernels.quantize(
        x, codec=codec, signed=signed, seed=7, keep_nonzero=True, implementation="xla"
    )
    codes, _ = quantized(x, codec, signed, hashing.mix(jnp.uint32(7)), keep_nonzero=True)
    ranks = (oracles.ranks(np.asarray(x), codec, signed) for x in (codes, expected))
    apart = np.abs(np.subtract(*ranks))
    # One apart where the random turn is within rounding errors of the value.
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


# ----------------------------------------------------------------------------------- the judge

MISTAKES = {
    "no mask": (", mask=inside, other=0", "", "outside of an array"),
    "nothing for a mask": (", other=0", "", "nothing stands for"),
    "another tile": ("first = tile.to(tl.int64) * 16", "first = tile.to(tl.int64) * 15", "."),
    "too wide": ("at = row[None, :, None] * 256", "at = row[None, :, None] * 255", "."),
    "unordered": ("column = tl.arange(0, 2)[:, None, None] * 128", "column = 0 * row[:1]", "."),
    "another dtype": (".to(tl.uint8)\n", ".to(tl.int16)\n", "where it is to be another"),
    "another number": ("12582912.0", "12582913.0", "."),
    "no sign": (" & (-2147483648)", " & 0", "."),
    "smaller": ("tl.maximum(", "tl.minimum(", "."),
    "no store": ("tl.store(p + at", "(p + at", "."),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_noticed(name, monkeypatch):
    old, new, words = MISTAKES[name]

    def wrong(kernel, *args):
        assert old in kernel.source
        return standing_in.call(kernel._replace(source=kernel.source.replace(old, new)), *args)

    def step(*args):
        with monkeypatch.context() as patch:
            patch.setattr(launch, "call", wrong)
            return on_arrays(BY_TRITON.step)(*args)

    leaf = Leaf(shape=(9000,), p="bfloat16", g="bfloat16")
    with pytest.raises((AssertionError, jax.errors.JaxRuntimeError), match=words):
        steps.test_a_kernel_does_what_xla_does(step, leaf)
