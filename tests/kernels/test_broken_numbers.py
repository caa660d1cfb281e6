"""What is no number, or too large a one: it is left alone and counted, or it is seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.arithmetic.step import Spec
from pallas_kernels.tiled import step as tiled
from pallas_kernels.tiled.rows import TILE
from tests.kernels.interpreted import interpreted_step
from tests.kernels.test_mosaic import RULES, Leaf, scalars, xla_step
from tests.rules import LARS, MOMENTUM

STEP = pytest.mark.parametrize(
    "step", [pytest.param(xla_step, id="xla"), pytest.param(interpreted_step, id="kernels")]
)
RULE = pytest.mark.parametrize("rule", ["lion", "lamb", "adam"])
EMIT = pytest.mark.parametrize("emit", ["params", "updates"])

# Rows of a block: two tiles, the first of them with what is broken, and a rest.
SHAPE, BLOCK = (2 * TILE // 256 + 3, 256), 1


@functools.cache
def jitted(step, spec):
    return jax.jit(functools.partial(step, spec))


def leaf_of(rule, emit="params"):
    return Leaf(rule, shape=SHAPE, emit=emit, bad=False)


def with_scale(arrays, slot, scale, block=BLOCK):
    """The same, with the scale of a block of a slot replaced."""
    g, p, slots, absmaxes, *others = arrays
    absmaxes = list(absmaxes)
    absmaxes[slot] = absmaxes[slot].at[block, 0].set(scale)
    return g, p, slots, tuple(absmaxes), *others


def as_updates(leaf, out):
    p = np.asarray(leaf.arrays()[1], np.float64)
    return np.asarray(out, np.float64) - (p if leaf.emit == "params" else 0)


@STEP
@EMIT
@RULE
@pytest.mark.parametrize("scale", [np.nan, np.inf])
@pytest.mark.parametrize("block", [BLOCK, SHAPE[0] - 1], ids=["tile", "rest"])
def test_a_momentum_that_is_no_number_is_seen(step, emit, rule, scale, block):
    leaf = leaf_of(rule, emit)
    run, arrays = jitted(step, leaf.spec), leaf.arrays()
    out, _, absmaxes, _ = run(*with_scale(arrays, 0, scale, block))
    assert np.isnan(out[block]).all()
    assert not np.isfinite(absmaxes[0][block]).any()  # and at the next step, too
    others = np.delete(np.arange(SHAPE[0]), block)
    if rule == "lamb":  # its norm is that of the whole leaf
        assert np.isnan(out).all()
    else:
        np.testing.assert_array_equal(out[others], run(*arrays).out[others])


@STEP
@RULE
def test_broken_numbers_are_the_same_ones_later(step, rule):
    """A broken momentum does not become a finite one in the steps that follow."""
    leaf = leaf_of(rule)
    run, (g, p, slots, absmaxes, *others) = jitted(step, leaf.spec), leaf.arrays()
    _, _, slots, absmaxes, *_ = with_scale((g, p, slots, absmaxes), 0, np.inf)
    for _ in range(3):
        out, slots, absmaxes, _ = run(g, p, slots, absmaxes, *others)
        assert np.isnan(out[BLOCK]).all()


# Gradients, and the rules that leave an element alone because of them.
HUGE = 1e30
BAD = {np.nan: "lion lamb adam", np.inf: "lion lamb adam", -np.inf: "lion lamb adam"}
BAD |= {3e38: "lion lamb adam", HUGE: "lamb adam", 1e15: ""}


@STEP
@EMIT
@RULE
@pytest.mark.parametrize("value", BAD, ids=str)
def test_what_is_left_alone_is_counted(step, emit, rule, value):
    leaf = leaf_of(rule, emit)
    run = jitted(step, leaf.spec._replace(count_skipped=True))
    g, *others = leaf.arrays()
    rows, columns = np.array([1, 1, TILE // 256 + 1, SHAPE[0] - 1]), np.array([7, 255, 0, 100])
    out, slots, absmaxes, skipped = run(g.at[rows, columns].set(value), *others)
    left_alone = rule in BAD[value]
    assert float(skipped) == (rows.size if left_alone else 0)
    assert all(np.isfinite(x).all() for x in (out, *absmaxes))
    moved = as_updates(leaf, out)[rows, columns]
    assert not moved.any() if left_alone else moved.all()
    assert float(run(g, *others).skipped) == 0


@STEP
@RULE
def test_nothing_is_counted_unless_asked_for(step, rule):
    leaf = leaf_of(rule)
    assert jitted(step, leaf.spec)(*leaf.arrays()).skipped is None


@STEP
@EMIT
def test_an_infinite_gradient_is_found_whatever_the_limit(step, emit):
    spec = Spec(MOMENTUM, (get_codec("power", True),), 256, None, emit, count_skipped=True)
    assert spec.rule.grad_limit == 2.0**126
    leaf = leaf_of("lion", emit)
    g, *others = leaf.arrays()
    out, _, absmaxes, skipped = jitted(step, spec)(g.at[1, 7].set(jnp.inf), *others)
    moved = as_updates(leaf, out)
    assert float(skipped) == 1 and moved[1, 7] == 0
    assert np.isfinite(moved).all() and np.isfinite(absmaxes[0]).all()
    # And the rest makes the step that it makes without.
    expected = as_updates(leaf, jitted(step, spec)(g, *others).out)
    same = np.ones(SHAPE, bool)
    same[1] = False
    np.testing.assert_array_equal(moved[same], expected[same])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("grad_scale", [None, 0.5])
@pytest.mark.parametrize("layers", [None, 3])
def test_kernels_read_their_scalars_four_at_a_time(rule, grad_scale, layers):
    def scalar(x):
        return x if layers is None or x is None else jnp.full(layers, x)

    s = scalars(RULES[rule])._replace(grad_scale=scalar(grad_scale))
    s = s.astype(jnp.float32).prepared(RULES[rule])
    hyper = tiled._Hyper.of(s, Leaf(rule).arrays()[-1])
    assert hyper.floats.ndim == 1 and hyper.floats.size % 4 == 0
    values = [x for x in jax.tree.leaves(s) if not x.ndim]
    assert len(values) <= hyper.floats.size < len(values) + 4
    np.testing.assert_array_equal(hyper.floats[: len(values)], values)


@EMIT
def test_a_rule_that_divides_nothing_has_its_own_norm(emit):
    """As of LARS. The scale of what LAMB divides is made part of the division, this one is not."""
    spec = Spec(LARS, (get_codec("power", True),), 256, None, emit)
    leaf = leaf_of("lion", emit)
    g, *others = leaf.arrays()
    others[0] = jnp.ones(SHAPE)  # parameters, which the ratio needs
    lengths = [
        np.linalg.norm(np.asarray(jitted(step, spec)(g, *others).out) - (emit == "params"))
        for step in (interpreted_step, xla_step)
    ]
    # Directions are off by 1e-6, sums are in another order, and a code may differ beside a turn.
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)
