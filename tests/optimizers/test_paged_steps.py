"""A paged optimizer takes the steps of the resident one, to the last bit, whatever its pages."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import StateOptions, apply_fused
from optax_lamblion._steps import stream
from pallas_kernels import dispatch
from tests.kernels.interpreted import interpreted
from tests.optimizers import problem
from tests.variants import VARIANTS, every, rows_of

SHAPES = {
    "cut": (1100, 1024),
    "cut_rows": (4200, 256),  # that look like the view of blocks
    "cut_ragged": (2**20 + 70_001,),
    "grouped": (300, 512),
    "grouped_ragged": (100_003,),
    "resident": (300,),
}
paged = every(lambda v: v.paged)
# `paged_lion` and `paged_lamb` are what their 32-bit variants are.
each_kind = every(lambda v: v.paged)


def in_small_pages(v, **kwargs):
    """The optimizer, with leaves cut into two to four pieces."""
    options = StateOptions(page_bytes=2**20 if v.bits == 8 else 2**22)
    return v.factory(**{**v.kwargs, **kwargs}, options=options)


def stepped(tx, fused, dtype, steps=2):
    """Parameters or updates, and the state, after some steps."""

    @jax.jit
    def step(p, state, g):
        if fused:
            return apply_fused(tx, p, g, state)
        return tx.update(g, state, p)

    p = problem.tree(0, dtype, SHAPES)
    state = tx.init(p)
    for i in range(steps):
        out, state = step(p, state, problem.tree(i + 1, dtype, SHAPES))
        p = out if fused else p
    return out, state


def _rows():
    """Everything, of which what repeats or takes long is slow."""
    forms = [("float32", False), ("float32", True), ("bfloat16", True)]
    for v, (dtype, fused) in itertools.product((v for v in VARIANTS if v.paged), forms):
        quick = v.name.endswith("8bit") or (v.name.endswith("32bit") and dtype == "float32")
        quick = quick and (v.name, dtype, fused) != ("paged_lamb8bit", "float32", True)
        label = f"{v.name}-{dtype}-{'apply_fused' if fused else 'update'}"
        yield pytest.param(v, dtype, fused, id=label, marks=[] if quick else [pytest.mark.long])


@pytest.mark.parametrize(("v", "dtype", "fused"), list(_rows()))
def test_same_bits_as_the_resident_variant(v, dtype, fused):
    expected, expected_state = stepped(v.resident(), fused, dtype)
    found, state = stepped(in_small_pages(v), fused, dtype)
    problem.assert_equal(state, expected_state)
    if dtype == "float32" and fused and not (v.takes_signs or v.has_ratio):
        # XLA's CPU compiler contracts the sum with the parameter by the shape of the loop: a unit.
        problem.assert_near(found, expected, rtol=2.0**-22)
    else:
        problem.assert_equal(found, expected)


@pytest.mark.long
@every(lambda v: v.name in ("paged_lamb8bit", "paged_lamb32bit"))
def test_same_bits_with_a_third_slot(v):
    extra = dict(adam_w_mode=False, amsgrad=True, trust_clip=(0.1, 2.0))
    expected = stepped(v.resident(**extra), True, "float32")
    got = stepped(in_small_pages(v, **extra), True, "float32")
    problem.assert_equal(got, expected)


@pytest.mark.long
@each_kind
def test_same_steps_with_clipping(v):
    """Not the same bits: with one more product before the sum of two, XLA's CPU compiler makes a
    multiply-add of one or the other, by the shape of the loop."""
    expected = stepped(v.resident(percentile_clipping=5), True, "float32")
    got = stepped(in_small_pages(v, percentile_clipping=5), True, "float32")
    problem.assert_near(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("page_bytes", "in_flight"),
    [
        (2**21, 1),
        pytest.param(2**20, 5, marks=pytest.mark.long),
        pytest.param(2**21, 3, marks=pytest.mark.long),
        pytest.param(2**25, 2, marks=pytest.mark.long),
    ],
)
def test_pages_do_not_change_a_step(page_bytes, in_flight):
    (v,) = rows_of(lambda v: v.name == "paged_lamb8bit")
    options = StateOptions(page_bytes=page_bytes, pages_in_flight=in_flight)
    got = stepped(v.factory(**v.kwargs, options=options), True, "float32")
    problem.assert_equal(got, _expected_of_lamb())


@functools.cache
def _expected_of_lamb():
    (v,) = rows_of(lambda v: v.name == "lamb8bit")
    return stepped(v(), True, "float32")


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
@each_kind
def test_updates_have_the_promoted_dtype(v, dtypes):
    """They are written over the gradient where they have its dtype, and elsewhere where not."""
    p = problem.tree(0, dtypes[0], SHAPES)
    g = problem.tree(1, dtypes[1], SHAPES)
    txs = v.resident(), in_small_pages(v)
    expected, got = (jax.jit(tx.update)(g, tx.init(p), p)[0] for tx in txs)
    problem.assert_equal(got, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@each_kind
def test_bad_elements_stay_as_they_were(v, bad):
    p, g = (problem.tree(i, shapes={"cut": SHAPES["cut"]}) for i in (0, 1))
    g["cut"] = g["cut"].at[[0, 700, -1], [3, 0, -1]].set(bad)
    tx = in_small_pages(v)
    state = tx.init(p)
    updates, new = jax.jit(tx.update)(g, state, p)
    at = [0, 700, 1099], [3, 0, 1023]
    np.testing.assert_array_equal(updates["cut"][at], 0)
    for slot in v.slots:
        old, now = (np.asarray(getattr(s, slot)["cut"]) for s in (state, new))
        np.testing.assert_array_equal(now[at], old[at])
        assert np.mean(now == old) < 0.01
    expected = jax.jit(v.resident().update)(g, v.resident().init(p), p)
    problem.assert_equal((updates, new), expected)


@each_kind
def test_a_leaf_without_a_gradient_is_left_alone(v):
    tx = in_small_pages(v)
    p, g = (problem.tree(i, shapes=SHAPES) for i in (0, 1))
    state = tx.init(p)
    updates, new = tx.update({**g, "cut": None, "grouped": None}, state, p)
    expected, expected_state = tx.update(g, state, p)
    for name in SHAPES:
        left_alone = name in ("cut", "grouped")
        problem.assert_equal(updates[name], None if left_alone else expected[name])
        source = state if left_alone else expected_state
        problem.assert_equal(new.mu[name], source.mu[name])


@pytest.mark.parametrize(
    "name", ["paged_lion8bit", pytest.param("paged_lamb8bit", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("fused", [False, True], ids=["update", "apply_fused"])
def test_kernels_work_on_pages(name, fused):
    """Through the public functions, in Pallas's interpreter, with a leaf in pieces."""
    (v,) = rows_of(lambda v: v.name == name)
    shapes = {"cut": (SHAPES["cut_ragged"][0],), "grouped": (8, 512)}
    options = StateOptions(page_bytes=2**20, page_min_size=4096)
    p, g = (problem.tree(i, "bfloat16", shapes) for i in (0, 1))

    def step(tx):
        return apply_fused(tx, p, g, tx.init(p)) if fused else tx.update(g, tx.init(p), p)

    with interpreted():
        out, state = step(v.factory(**v.kwargs, options=options))
        expected, expected_state = step(v.resident())
    problem.assert_equal(state, expected_state)
    # LAMB's norms are summed up in another order: a rounding of bfloat16 apart, at most.
    ulp = float(jnp.finfo(jnp.bfloat16).eps) if v.has_ratio else 0
    for name in shapes:
        np.testing.assert_allclose(
            np.float32(out[name]), np.float32(expected[name]), rtol=ulp, atol=0
        )


# ------------------------------------------------------------------------------ what goes wrong


class Fault(Exception):
    pass


@pytest.fixture
def fault(monkeypatch):
    """A step in which the third leaf fails, once it is run."""

    def fail(x):
        raise Fault("a page fault")

    calls = []
    step = dispatch.step

    def failing(leaf):
        calls.append(g := leaf.g)
        if len(calls) == 3:
            g = jax.pure_callback(fail, jax.ShapeDtypeStruct(g.shape, g.dtype), g)
        return step(leaf.replace(g=g))

    monkeypatch.setattr(dispatch, "step", failing)
    monkeypatch.setattr(stream, "run", jax.jit(stream.run.__wrapped__, static_argnums=0))


@paged
def test_a_step_that_fails_leaves_everything_as_it_was(v, fault):
    tx = v.factory(**v.kwargs, options=StateOptions(page_bytes=2**20, page_min_size=1000))
    shapes = {f"leaf{i}": (100, 512) for i in range(5)}
    p, g = (problem.tree(i, shapes=shapes) for i in (0, 1))
    state = tx.init(p)
    before = jax.tree.map(np.array, (p, state))
    with pytest.raises(Exception, match="a page fault"):
        jax.block_until_ready(jax.jit(tx.update)(g, state, p))
    problem.assert_equal(jax.tree.map(np.array, (p, state)), before)


@paged
def test_a_donated_step_that_fails_leaves_nothing_that_can_be_read(v, fault):
    """What was donated is gone, and says so: nobody goes on from a state that is half new."""
    tx = v.factory(**v.kwargs, options=StateOptions(page_bytes=2**20, page_min_size=1000))
    shapes = {f"leaf{i}": (100, 512) for i in range(5)}
    p, g = (problem.tree(i, shapes=shapes) for i in (0, 1))
    state = tx.init(p)
    step = jax.jit(lambda p, s, g: apply_fused(tx, p, g, s), donate_argnums=(0, 1))
    with pytest.raises(Exception, match="a page fault"):
        jax.block_until_ready(step(p, state, g))
    for x in jax.tree.leaves((p, state.mu)):
        with pytest.raises(RuntimeError, match="deleted"):
            np.asarray(x)


@paged
def test_no_memory_on_the_host_is_an_error_and_no_state(v, monkeypatch):
    put, made = jax.device_put, []

    def full(x, *args, **kwargs):
        made.append(x)
        if len(made) > 2:
            raise MemoryError("no more pinned memory")
        return put(x, *args, **kwargs)

    monkeypatch.setattr(jax, "device_put", full)
    p = problem.tree(0, shapes=SHAPES)
    with pytest.raises(MemoryError, match="no more pinned memory"):
        v.factory(**v.kwargs).init(p)
    assert not any(x.is_deleted() for x in jax.tree.leaves(p))


def test_optax_can_differentiate_through_a_step():
    """As through any other: for meta-learning, of a learning rate for one."""
    (v,) = rows_of(lambda v: v.name == "paged_lamb32bit")
    p, g = (problem.tree(i, shapes={"grouped": SHAPES["grouped"]}) for i in (0, 1))

    def loss(learning_rate, tx_of):
        tx = tx_of(learning_rate=learning_rate)
        updates, _ = tx.update(g, tx.init(p), p)
        return optax.tree.sum(jax.tree.map(jnp.square, updates))

    slope = jax.grad(loss)(1e-2, v)
    np.testing.assert_allclose(slope, jax.grad(loss)(1e-2, v.resident), rtol=1e-5)
    assert slope > 0
