"""A run that goes on with another head, more words or thawed layers: `missing="fresh"`.

The judge of a leaf that was saved is the state before; of one that was not, `tx.init`.
"""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import (
    StateOptions,
    adamw8bit,
    convert_state,
    lamb8bit,
    lamb32bit,
    lion8bit,
    paged_lion8bit,
    restore_target,
)
from tests.checkpoints import problem
from tests.optimizers.test_errors import check

OLD = {"body": jnp.ones((16, 256)), "words": jnp.ones((20, 256)), "old_head": jnp.ones(9)}
NEW = {"body": jnp.ones((16, 256)), "words": jnp.ones((24, 256)), "head": jnp.ones((32, 256))}

OPTIMIZERS = {
    "lion8bit": lion8bit(),
    "paged_lion8bit": paged_lion8bit(options=StateOptions(page_min_size=0)),
    "lamb8bit": lamb8bit(
        amsgrad=True, percentile_clipping=5, options=StateOptions(count_skipped=True)
    ),
    "lamb32bit": lamb32bit(),
    "chain": optax.chain(optax.clip(1.0), adamw8bit(optax.linear_schedule(1e-3, 0, 9))),
}


def fresh(state, params, tx):
    """The state, and what is warned of."""
    with pytest.warns(UserWarning, match="start at zero") as caught:
        state = convert_state(state, params, tx, missing="fresh")
    assert caught[0].filename == __file__
    return state, str(caught[0].message)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_was_saved_goes_on_and_the_rest_begins_anew(name):
    tx = OPTIMIZERS[name]
    old = problem.filled(tx.init(OLD))
    state, warned = fresh(flax.serialization.to_state_dict(old), NEW, tx)
    expected = tx.init(NEW)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    assert problem.structs(state) == problem.structs(expected)
    old = dict(jax.tree_util.tree_leaves_with_path(old))
    rows = jax.tree_util.tree_leaves_with_path(state)
    for (path, x), zero in zip(rows, jax.tree.leaves(expected), strict=True):
        new = path[-1] in (jax.tree_util.DictKey("words"), jax.tree_util.DictKey("head"))
        np.testing.assert_array_equal(x, zero if new else old[path], str(path))
        assert x.sharding.memory_kind == zero.sharding.memory_kind
    assert "moments of 'head', 'words' start at zero" in warned
    assert "of 'old_head' are dropped" in warned


def test_layers_that_were_frozen_begin_when_they_thaw():
    before = optax.masked(lion8bit(), {"body": False, "words": True, "old_head": True})
    after = optax.masked(lion8bit(), {"body": True, "words": True, "old_head": True})
    old = problem.filled(before.init(OLD))
    state, warned = fresh(old, OLD, after)
    assert "moments of 'body' start" in warned and "dropped" not in warned
    assert not state.inner_state.mu["body"].any()
    assert problem.bits(state.inner_state.mu["words"]) == problem.bits(old.inner_state.mu["words"])


def test_a_step_after_it_is_that_of_both():
    tx = lion8bit(1e-3, weight_decay=0.1)
    old = problem.filled(tx.init(OLD))
    state, _ = fresh(old, NEW, tx)
    grads = jax.tree.map(lambda p: 0.5 * p, NEW)
    updates, state = tx.update(grads, state, NEW)
    body, _ = tx.update(jax.tree.map(lambda p: 0.5 * p, OLD), old, OLD)
    anew, _ = tx.update(grads, tx.init(NEW)._replace(count=old.count), NEW)
    np.testing.assert_array_equal(updates["body"], body["body"])
    np.testing.assert_array_equal(updates["head"], anew["head"])
    assert state.count == old.count + 1


def test_first_steps_of_adam_are_longer_where_moments_began_late():
    """By as much as the page about checkpoints says: (1 - b1) / sqrt(1 - b2)."""
    tx = adamw8bit(1.0, b1=0.9, b2=0.999, eps=0.0, weight_decay=0.0, min_8bit_size=10**9)
    old = tx.init(OLD)._replace(count=jnp.int32(10**6))
    old = old._replace(mu={**old.mu, "body": OLD["body"]}, nu={**old.nu, "body": OLD["body"]})
    state, _ = fresh(old, NEW, tx)
    updates, _ = tx.update(NEW, state, NEW)
    # Three roundings in float32, and a square root.
    np.testing.assert_allclose(updates["head"], -0.1 / np.sqrt(0.001), rtol=1e-5)


def test_it_is_refused_unless_it_is_asked_for():
    tx = lion8bit()
    way = 'missing="fresh"'
    check(lambda: convert_state(tx.init(OLD), NEW, tx), ValueError, ["'mu/head'", "missing", way])
    longer = {**OLD, "words": NEW["words"]}
    check(lambda: convert_state(tx.init(OLD), longer, tx), ValueError, ["mu['words']", "(24, 256)"])
    check(
        lambda: convert_state(tx.init(OLD), NEW, tx, missing="zeros"), ValueError,
        ["`missing`", '"refuse" or "fresh"', "'zeros'"],
    )  # fmt: skip


def test_nothing_in_common_is_refused_all_the_same():
    tx = lion8bit()
    others = {"a": jnp.ones(3), "b": jnp.ones(4)}
    for state, new in [
        (tx.init(others), tx),
        (tx.init(OLD), lamb8bit()),  # no second moment of any leaf
        (optax.sgd(1e-3, momentum=0.9).init(OLD), tx),
    ]:
        wants = ["no"]
        check(lambda s=state, n=new: convert_state(s, NEW, n, missing="fresh"), ValueError, wants)


def test_what_is_no_moment_is_not_left_behind():
    state = optax.chain(optax.ema(0.9), lion8bit()).init(OLD)
    with pytest.raises(ValueError, match="no place"):
        convert_state(state, NEW, lion8bit(), missing="fresh")


def test_nothing_is_said_where_nothing_is_missing():
    tx = lion8bit()
    state = problem.filled(tx.init(OLD))
    assert problem.bits(convert_state(state, OLD, tx, missing="fresh")) == problem.bits(state)


# ------------------------------------------------------------------------- inject_hyperparams


INJECTED = optax.inject_hyperparams(lion8bit)(learning_rate=1e-3)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_plain_state_under_inject_hyperparams_gets_the_way(wrapped):
    chain = (lambda tx: optax.chain(optax.clip(1.0), tx)) if wrapped else (lambda tx: tx)
    state, tx = chain(lion8bit()).init(OLD), chain(INJECTED)
    wants = ["`optax.inject_hyperparams`", "`tx.init(params)._replace(inner_state=convert_state("]
    check(lambda: convert_state(state, OLD, tx), ValueError, wants)
    check(lambda: restore_target(tx, OLD, problem.structs(state)), ValueError, wants)
    check(lambda: convert_state(tx.init(OLD), OLD, chain(lion8bit())), ValueError,
          ["`optax.inject_hyperparams`", "`state.inner_state`"])  # fmt: skip
    assert convert_state(tx.init(OLD), OLD, tx)


def test_the_way_that_is_said_is_one():
    old = problem.filled(lion8bit().init(OLD))
    state = INJECTED.init(OLD)._replace(inner_state=convert_state(old, OLD, lion8bit()))
    _, state = INJECTED.update(OLD, state, OLD)
    assert state.inner_state.count == 1235
    there = convert_state(state.inner_state, OLD, lion8bit())
    assert problem.bits(there) == problem.bits(state.inner_state)


def test_parameters_may_be_called_as_the_fields_of_optax():
    params = {"hyperparams": {"w": jnp.ones(5)}, "inner_state": jnp.ones(3)}
    tx = lion8bit()
    state = convert_state(tx.init(params), params, tx)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
