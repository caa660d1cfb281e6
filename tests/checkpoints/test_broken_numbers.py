"""Moments and scales that no step leaves behind are refused by name, and nothing has changed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from optax_lamblion import (
    StateOptions,
    convert_state,
    lamb8bit,
    lamb32bit,
    lion8bit,
    lion32bit,
    paged_lamb8bit,
    restore_target,
)
from tests.checkpoints import problem
from tests.optimizers.test_errors import check
from tests.variants import small_pages

SLOTS = ("mu", "nu", "nu_max")
VALUES = {"NaN": np.nan, "infinite": np.inf, "minus infinity": -np.inf, "negative": -1.0}
REMEDY = ["damaged", "earlier checkpoint", "all of its moments and scales to zero"]
OURS = {
    "resident": lamb8bit(amsgrad=True),
    "paged": paged_lamb8bit(amsgrad=True, options=small_pages()),
}
OTHERS = {
    "other blocks": lamb8bit(amsgrad=True, options=StateOptions(block_size=64)),
    "32 bits": lamb32bit(amsgrad=True),
}
values = pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)


def with_number(state, field, leaf, value):
    """The state with another last number in a leaf: on a mesh, in the last shard."""
    x = getattr(state, field)[leaf]
    new = np.array(x, copy=True)
    new.flat[-1] = value
    new = jax.device_put(new, x.sharding) if x.committed else jnp.asarray(new)
    return state._replace(**{field: getattr(state, field) | {leaf: new}})


def assert_refused(state, p, tx, *fragments):
    before = problem.bits(state)
    check(lambda: convert_state(state, p, tx), ValueError, [*fragments, *REMEDY])
    assert problem.bits(state) == before


@pytest.mark.parametrize("place", ["one device", "8 devices"])
@pytest.mark.parametrize("kind", OURS)
@values
def test_scales(value, kind, place):
    tx, p = OURS[kind], problem.params(place)
    state = problem.filled(tx.init(p))
    for slot in SLOTS:
        for leaf in ("rows", "odd_tail"):
            broken = with_number(state, f"{slot}_absmax", leaf, value)
            scales = getattr(broken, f"{slot}_absmax")[leaf]
            assert (scales.sharding.memory_kind == "pinned_host") == (kind == "paged")
            wants = [f"{slot}[{leaf!r}]", "scales", "negative", f"(1 of {scales.size})"]
            for to in (tx, *OTHERS.values()):
                assert_refused(broken, p, to, *wants)
            assert_refused(jax.tree.map(np.asarray, broken), p, tx, *wants)
    assert problem.bits(convert_state(state, p, tx)) == problem.bits(state)


@pytest.mark.parametrize("place", ["one device", "8 devices"])
@values
def test_float32_moments(value, place):
    tx, p = lamb32bit(amsgrad=True), problem.params(place)
    state = problem.filled(tx.init(p))
    for slot in SLOTS:
        for leaf in problem.SHAPES:
            broken = with_number(state, slot, leaf, value)
            if slot == "mu" and value == -1:
                convert_state(broken, p, tx)  # a first moment may be negative
                continue
            size = np.prod(problem.SHAPES[leaf])
            for to in (tx, lamb8bit(amsgrad=True)):
                assert_refused(broken, p, to, f"{slot}[{leaf!r}]", "numbers", f"(1 of {size})")
    assert problem.bits(convert_state(state, p, tx)) == problem.bits(state)


def test_a_small_leaf_of_a_state_in_8_bits():
    tx, p = lion8bit(), problem.params()
    broken = with_number(problem.filled(tx.init(p)), "mu", "small", np.nan)
    assert_refused(broken, p, tx, "mu['small']", "numbers that are NaN or infinite", "(1 of 33)")


@pytest.mark.parametrize("make", [optax.lion, optax.lamb])
def test_moments_of_optax(make):
    p = problem.params()
    tx = lion32bit() if make is optax.lion else lamb32bit()
    first, *rest = make(1e-3).init(p)
    for value in (np.nan, np.inf):
        broken = with_number(first, "mu", "rows", value)
        assert_refused((broken, *rest), p, tx, "mu['rows']", "NaN or infinite")


@pytest.mark.parametrize(
    ("tx", "slot", "expected"),
    [(optax.lion(1e-3, weight_decay=0.0), "mu", -1e-3), (optax.lamb(1e-3), "nu", 0.0)],
    ids=["lion marches", "lamb stands still"],
)
def test_optax_lets_nobody_see_an_infinite_moment(tx, slot, expected):
    """Which is why one is refused in 32 bits, too."""
    p = {"w": jnp.ones(3)}
    state = with_number(tx.init(p)[0], slot, "w", np.inf), *tx.init(p)[1:]
    with jax.numpy_dtype_promotion("standard"):  # which `optax.lamb` needs
        for _ in range(3):
            updates, state = tx.update({"w": -jnp.ones(3)}, state, p)
            assert updates["w"][-1] == np.float32(expected) and updates["w"][0] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0], ids=str)
def test_the_way_of_restoring_that_is_documented(value, tmp_path):
    tx, p = lion8bit(), problem.params("8 devices")
    broken = with_number(problem.filled(tx.init(p)), "mu_absmax", "rows", value)
    problem.save(tmp_path / "saved", {"params": p, "opt_state": (broken,)})
    saved = problem.metadata(tmp_path / "saved")
    tx = optax.chain(tx)
    target = {
        "params": jax.tree.map(ocp.utils.to_shape_dtype_struct, p),
        "opt_state": restore_target(tx, p, saved["opt_state"]),
    }
    restored = problem.restore(tmp_path / "saved", target)
    assert_refused(restored["opt_state"], p, tx, "mu['rows']", "scales", "(1 of 32)")


def test_a_leaf_that_begins_anew_is_welcome():
    """As the message says: set all of its moments and scales to zero."""
    tx, p = lamb8bit(), problem.params()
    state = problem.filled(tx.init(p))
    broken = with_number(state, "nu_absmax", "rows", np.nan)
    names = [f"{slot}{end}" for slot in ("mu", "nu") for end in ("", "_absmax")]
    fresh = {
        name: getattr(broken, name) | {"rows": jnp.zeros_like(getattr(broken, name)["rows"])}
        for name in names
    }
    mended = convert_state(broken._replace(**fresh), p, tx)
    new = tx.init(p)
    for name in names:
        assert problem.bits(getattr(mended, name)["rows"]) == problem.bits(
            getattr(new, name)["rows"]
        )
        for leaf in ("odd_tail", "small"):
            assert problem.bits(getattr(mended, name)[leaf]) == problem.bits(
                getattr(state, name)[leaf]
            )


def test_nothing_is_looked_at_while_tracing():
    tx, p = lion8bit(), problem.params()
    broken = with_number(problem.filled(tx.init(p)), "mu_absmax", "rows", np.nan)
    passed = jax.jit(lambda state: convert_state(state, p, tx))(broken)
    assert problem.bits(passed) == problem.bits(broken)
    closed_over = jax.jit(lambda: convert_state(broken, p, tx))()
    assert problem.bits(closed_over) == problem.bits(broken)
    jax.eval_shape(lambda state: convert_state(state, p, lion32bit()), broken)


def test_what_was_looked_at_can_still_be_written_over():
    """No view of its memory is left behind, which would make donating it useless."""
    tx, p = lamb32bit(), jax.tree.map(jnp.asarray, problem.params())
    step = jax.jit(lambda p, state: tx.update(p, state, p)[1], donate_argnums=1)
    state = convert_state(step(p, problem.filled(tx.init(p))), p, tx)
    before = problem.addresses(state.mu)
    assert problem.addresses(step(p, state).mu) == before
