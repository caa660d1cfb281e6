"""The kernels do what the XLA path does: here in Pallas's interpreter, with `-m gpu` on a GPU.

The oracles judge steps of both in `test_rules_against_oracle`. This is about everything that a
kernel has and they do not see: tiles and rests, both ways to emit a step, every mix of dtypes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.arithmetic import rules
from pallas_kernels.arithmetic.blocks import absmax_shape
from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.arithmetic.dither import Dither
from pallas_kernels.arithmetic.step import Spec
from pallas_kernels.mosaic import step as mosaic
from pallas_kernels.mosaic.tile import Rest, cut
from pallas_kernels.tiled.rows import TILE
from pallas_kernels.xla import step as xla
from tests import oracles
from tests.kernels.interpreted import KERNELS, interpreted_step
from tests.rules import SIGNUM
from tests.steps import on_arrays, scalars_of

RULES = {
    "lion": rules.LION,
    "lamb": rules.LAMB,
    "lamb_amsgrad": rules.LAMB_AMSGRAD,
    "adam": rules.ADAM,
    "signum": SIGNUM,
}


def scalars(rule):
    """Those of the third step."""
    return scalars_of(rule, jnp.float32(3), b2=0.99, weight_decay=0.1, step_size=-0.01)


xla_step, mosaic_step = on_arrays(xla.step), on_arrays(mosaic.step)
# An interpreted kernel, and a real one.
RUN = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(interpreted_step, id="interpreted"),
        pytest.param(mosaic_step, id="gpu", marks=pytest.mark.gpu),
    ],
)


class Leaf(NamedTuple):
    """What one step of a leaf is made from, and with which choices."""

    rule: str = "lion"
    shape: tuple[int, ...] = (9001,)
    p: str = "float32"
    g: str = "float32"
    codec: str = "power"
    block: int = 256
    decay: str | None = "decoupled"
    emit: str = "params"
    bad: bool = True

    @property
    def spec(self):
        rule = RULES[self.rule]
        codecs = tuple(get_codec(self.codec, slot.signed) for slot in rule.slots)
        return Spec(rule, codecs, self.block, self.decay, self.emit)

    def arrays(self):
        rng = np.random.default_rng(0)
        slots = self.spec.rule.slots
        g = rng.normal(size=self.shape) * rng.lognormal(size=self.shape)
        if self.bad:  # in the first tile and in the last block
            g.ravel()[[5, 300, -1]] = [np.nan, np.inf, -np.inf]
        written = (oracles.written(self.codec, slot.signed) for slot in slots)
        codes = (rng.choice(codes, self.shape) for codes in written)
        scales = (rng.uniform(0.5, 2, absmax_shape(self.shape, self.block)) for _ in slots)
        return (
            jnp.asarray(g, self.g),
            jnp.asarray(rng.normal(size=self.shape), self.p),
            tuple(jnp.asarray(c, jnp.uint8) for c in codes),
            tuple(jnp.asarray(a, jnp.float32) for a in scales),
            scalars(self.spec.rule),
            Dither(jnp.uint32(3), jnp.uint32(2025)),
        )


def identity(leaf):
    """A name for a test, from what differs from the default."""
    pairs = zip(leaf, Leaf._field_defaults.values(), leaf._fields, strict=True)
    parts = [f"{name}={value}" for value, default, name in pairs if value != default]
    return "-".join(parts).replace(" ", "") or "default"


LEAVES = [
    # Sizes: one tile, whole tiles, blocks left over, part of a block left over, all of it.
    *(Leaf(shape=shape) for shape in [(TILE,), (4, 2048), (35, 256), (4097,), (3, 5, 7, 64)]),
    *(Leaf("lamb", shape=shape) for shape in [(TILE,), (4, 2048), (35, 256), (4097,), (9001,)]),
    # What a step is made of.
    *(Leaf(p=p, g=g) for p in ("float32", "bfloat16") for g in ("bfloat16", "float16")),
    Leaf(p="float16", g="float32", emit="updates"),
    Leaf(p="bfloat16", g="bfloat16", decay=None),
    Leaf("lamb", p="bfloat16", g="float32"),
    Leaf("lamb", p="float32", g="float16", emit="updates"),
    *(Leaf(rule, decay=decay, emit="updates") for rule in RULES for decay in (None, "coupled")),
    *(Leaf(rule, decay="coupled") for rule in RULES),
    # How it is stored.
    *(Leaf(rule, codec=codec) for rule in RULES for codec in ("dynamic", "linear")),
    *(Leaf(block=block) for block in (32, 64, 128, 512, 1024)),
    Leaf("lamb", block=64, shape=(2, 4200)),
    Leaf("lamb", bad=False),
    Leaf("lamb_amsgrad", p="bfloat16", g="bfloat16", emit="updates"),
]


@functools.cache
def run(step, leaf):
    return jax.jit(functools.partial(step, leaf.spec))(*leaf.arrays())


def terms(leaf, slots, absmaxes):
    """The sizes of what is added up in an update that goes by the new slots."""
    spec = leaf.spec
    mu, *_, root = (
        oracles.decode(np.asarray(codes), absmax, leaf.block, leaf.codec, slot.signed)
        for slot, codes, absmax in zip(spec.rule.slots, slots, absmaxes, strict=True)
    )
    g, p = (np.asarray(x.astype(jnp.float32), np.float64) for x in leaf.arrays()[:2])
    s = scalars(spec.rule)
    step = oracles.lamb_update(
        mu * float(s.own.debias1),
        root * (1 if len(slots) == 3 else float(s.own.debias2)),  # a maximum has it already
        p,
        ~np.isfinite(g),
        learning_rate=-s.step_size,
        eps=s.own.eps,
        weight_decay=s.weight_decay,
    )
    ratio = step.ratio if spec.rule.ratio else 1.0
    return -s.step_size * ratio * step.magnitude


@RUN
@pytest.mark.parametrize("leaf", LEAVES, ids=identity)
def test_a_kernel_does_what_xla_does(kernel, leaf):
    out, slots, absmaxes, _ = run(kernel, leaf)
    expected, expected_slots, expected_absmaxes, _ = run(xla_step, leaf)
    for slot, a, b in zip(leaf.spec.rule.slots, absmaxes, expected_absmaxes, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        # In units of 2**-24, half an ulp: XLA rounds a level, a product with the scale and one with
        # the decay, and their sum. A kernel rounds the product of scale and decay, one with it, and
        # the sum. Of a power of eight it multiplies roots: three roundings, which squaring doubles.
        units = 14 if slot.second_moment and leaf.codec == "power" else 7
        np.testing.assert_allclose(a, b, rtol=units * 2.0**-24)
    for slot, a, b in zip(leaf.spec.rule.slots, slots, expected_slots, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        ranks = (oracles.ranks(np.asarray(x), leaf.codec, slot.signed) for x in (a, b))
        apart = np.abs(np.subtract(*ranks))
        # One apart, and rarely: where the value is within a thousandth of a gap of the turn.
        assert apart.max() <= 1, slot.name
        assert (apart > 0).mean() < 2e-3, slot.name
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    eps_of = out.dtype
    out, expected = (np.asarray(x.astype(jnp.float32), np.float64) for x in (out, expected))
    same = np.all([np.asarray(a) == b for a, b in zip(slots, expected_slots, strict=True)], axis=0)
    # An update is as good as the scales (see above; the root of a second moment, half of that), but
    # for eight roundings and those of two norms. It is rounded to its dtype, or added to a
    # parameter and rounded with it; where the two cancel, the parameter is the larger.
    p = np.asarray(leaf.arrays()[1].astype(jnp.float32), np.float64) * (leaf.emit == "params")
    bound = (float(jnp.finfo(eps_of).eps) + (14 / 2 + 7 + 8 + 2) * 2.0**-24) * (
        np.abs(expected) + np.abs(p)
    )
    if leaf.emit == "updates" and leaf.decay == "decoupled" and leaf.spec.rule.form == "value":
        # Or the terms of a direction are, which are good to a few roundings.
        bound += 8 * 2.0**-24 * terms(leaf, expected_slots, expected_absmaxes)
    if leaf.spec.rule.ratio:
        # An element whose code differs has its share in the norm, by which all others are divided.
        squares = (expected - p) ** 2
        bound += 2 * squares[~same].sum() / squares.sum() * np.abs(expected - p)
    assert (np.abs(out - expected) <= bound)[same].all()


@RUN
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("codec", ["power", "dynamic"])
def test_bad_elements_stay_as_they_were(kernel, rule, codec):
    leaf = Leaf(rule, codec=codec)
    _, p, _, _, _, _ = leaf.arrays()
    out, _, absmaxes, _ = run(kernel, leaf)
    np.testing.assert_array_equal(out[np.array([5, 300, -1])], p[np.array([5, 300, -1])])
    assert all(np.isfinite(x).all() for x in (out, *absmaxes))


@RUN
@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if not rule.ratio])
def test_without_decay_updates_need_no_parameters(kernel, rule):
    leaf = Leaf(rule, decay=None, emit="updates")
    g, p, *others = leaf.arrays()
    step = jax.jit(functools.partial(kernel, leaf.spec))
    jax.tree.map(np.testing.assert_array_equal, step(g, None, *others), step(g, p, *others))


@RUN
@pytest.mark.parametrize("rule", RULES)
def test_zeros_stay_zeros(kernel, rule):
    leaf = Leaf(rule)
    g, p, slots, absmaxes, s, dither = leaf.arrays()
    slots = tuple(map(jnp.zeros_like, slots))
    arrays = (jnp.zeros_like(g), jnp.zeros_like(p), slots, absmaxes, s, dither)
    out, new_slots, new_absmaxes, _ = jax.jit(functools.partial(kernel, leaf.spec))(*arrays)
    assert not any(np.any(x) for x in (out, *new_slots, *new_absmaxes))


@RUN
@pytest.mark.parametrize("rule", RULES)
def test_emitted_parameters_are_parameters_plus_updates(kernel, rule):
    leaf = Leaf(rule)
    params, updates = (run(kernel, leaf._replace(emit=emit)) for emit in ("params", "updates"))
    p = np.float64(leaf.arrays()[1])
    bound = 2 * 2.0**-23 * (np.abs(p) + np.abs(updates[0]))
    if leaf.spec.rule.form == "value":  # where the terms of a direction cancel, they round the more
        bound += 8 * 2.0**-24 * terms(leaf, *updates[1:3])
    assert (np.abs(p + updates[0] - params[0]) <= bound).all()
    jax.tree.map(np.testing.assert_array_equal, params[1:], updates[1:])


@RUN
def test_a_step_can_be_mapped_and_scanned(kernel):
    leaf = Leaf("lamb", shape=(4500,), bad=False)
    g, p, slots, absmaxes, s, dither = leaf.arrays()

    def step(g, *carried):
        return kernel(leaf.spec, g, *carried, s, dither)[:3]

    two = jax.tree.map(lambda x: jnp.stack([x, x]), (g, p, slots, absmaxes))
    mapped = jax.jit(jax.vmap(step))(*two)
    once = jax.jit(step)(g, p, slots, absmaxes)
    for row in (0, 1):
        one_of_two = jax.tree.map(lambda x, row=row: x[row], mapped)
        jax.tree.map(np.testing.assert_array_equal, one_of_two, once)

    def body(carry, _):
        return step(g, *carry), None

    scanned, _ = jax.jit(lambda c: jax.lax.scan(body, c, length=2))((p, slots, absmaxes))
    twice = jax.jit(lambda c: step(g, *c))(once)
    jax.tree.map(np.testing.assert_array_equal, scanned, twice)


def test_tiles_do_not_race():
    """The interpreter looks at every access of every CTA."""
    racing = on_arrays(
        functools.partial(mosaic.step, interpret=plgpu.InterpretGPUParams(detect_races=True))
    )
    for leaf in (Leaf(shape=(2, TILE)), Leaf("lamb", shape=(2, TILE))):
        jax.tree.map(np.testing.assert_array_equal, run(racing, leaf), run(interpreted_step, leaf))


@pytest.mark.parametrize(
    "leaf, names",
    [
        (Leaf(), ["lion_step"]),
        (Leaf(emit="updates"), ["lion_signs"]),
        (Leaf("lamb"), ["lamb_moments", "lamb_apply"]),
        (Leaf("lamb", emit="updates"), ["lamb_moments"]),
        (Leaf("adam"), ["adam_step"]),
        (Leaf("adam", emit="updates"), ["adam_moments"]),
        (Leaf("signum"), ["signum_step"]),
        (Leaf("signum", emit="updates"), ["signum_signs"]),
    ],
    ids=lambda x: identity(x) if isinstance(x, Leaf) else "",
)
def test_kernels_have_names(leaf, names):
    text = str(jax.make_jaxpr(functools.partial(mosaic_step, leaf.spec))(*leaf.arrays()))
    known = (*KERNELS, "adam_step", "adam_moments", "adam_apply", "signum_step", "signum_signs")
    assert [name for name in known if name in text] == names


@pytest.mark.parametrize("block", [32, 256, 1024])
@pytest.mark.parametrize("row", [0, 2**24 - 1, 2**24, 2**31 - 1024])
def test_indices_hold_more_than_32_bits(block, row):
    """What `quantize` rounds at random by, against Python's integers."""
    leaf = cut(2**40, block, ["float32"], 8)
    first = row // leaf.rows * leaf.rows
    rest = Rest(leaf._replace(size=leaf.size + leaf.rows * block), 0, (2, block))
    rest._first = first  # as the tile number sets it in a kernel
    low, high = rest.index()
    index = (first + np.arange(2))[:, None] * block + np.arange(block)
    np.testing.assert_array_equal(low, index % 2**32)
    np.testing.assert_array_equal(np.broadcast_to(high, index.shape), index // 2**32)


@pytest.mark.parametrize("size", [TILE, TILE + 1, 10 * TILE - 1, 10 * TILE + 300])
@pytest.mark.parametrize("block", [32, 256, 1024])
@pytest.mark.parametrize("per_thread", [8, 16, 32])
def test_tiles_and_rest_cover_a_leaf_once(size, block, per_thread):
    leaf = cut(size, block, ["bfloat16"], per_thread)
    tile = leaf.rows * block
    assert TILE % tile == 0 and leaf.covered <= size < leaf.covered + tile
    assert leaf.covered % block == 0
    np.testing.assert_array_equal(
        oracles.block_of(size, block)[leaf.covered :: block],
        np.arange(leaf.covered // block, -(-size // block)),
    )
