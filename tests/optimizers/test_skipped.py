"""`StateOptions(count_skipped=True)`: how many elements steps have left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import StateOptions, apply_fused, lion8bit, state_sharding
from tests.meshes import problem as meshes
from tests.optimizers import problem
from tests.variants import every

COUNTS = StateOptions(count_skipped=True)
eight_and_32 = every()
MOST = 2**31 - 1


def spoiled(tree, at):
    """A gradient with something that is no number at so many places of every leaf."""

    def spoil(x):
        flat = np.array(x).ravel()
        flat[:at] = np.resize(np.float32([np.nan, np.inf, -np.inf]), at)
        return jnp.asarray(flat.reshape(x.shape), x.dtype)

    return jax.tree.map(spoil, tree)


@eight_and_32
@pytest.mark.parametrize("fused", [False, True], ids=["update", "apply_fused"])
def test_elements_that_are_left_alone_are_counted(v, fused):
    tx = v(options=COUNTS)
    p = problem.params()
    state = tx.init(p)
    assert state.skipped == 0 and state.skipped.dtype == np.int32 and state.skipped.shape == ()
    counts = []
    for step, at in enumerate((0, 3, 5, 0), 1):
        g = spoiled(problem.grads(step), at)
        if fused:
            p, state = apply_fused(tx, p, g, state)
        else:
            _, state = tx.update(g, state, p)
        counts.append(int(state.skipped))
    assert counts == [0, 3 * len(p), 8 * len(p), 8 * len(p)]


@eight_and_32
def test_counting_changes_nothing_else(v):
    p, g = problem.params(), spoiled(problem.grads(), 7)
    tx, counting = v(), v(options=COUNTS)
    updates, state = tx.update(g, tx.init(p), p)
    others, counted = counting.update(g, counting.init(p), p)
    assert state.skipped is None and counted.skipped == 7 * len(p)
    problem.assert_equal((others, counted._replace(skipped=None)), (updates, state))


def test_a_norm_that_is_no_number_skips_every_element():
    """One NaN behind `clip_by_global_norm`, the README's example: nothing moves, and it shows."""
    params = {"w": jnp.zeros((64, 1024)), "b": jnp.zeros(1024)}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), lion8bit(1e-4, weight_decay=0.1, options=COUNTS)
    )
    grads = jax.tree.map(jnp.ones_like, params)
    grads["b"] = grads["b"].at[17].set(jnp.nan)
    updates, state = tx.update(grads, tx.init(params), params)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    assert state[1].skipped == 64 * 1024 + 1024


@eight_and_32
def test_what_lies_over_the_limit_of_a_gradient_counts(v):
    tx, p = v(options=COUNTS), problem.params()
    g = jax.tree.map(lambda x: x.at[..., 0].set(3e38), problem.grads())
    _, state = tx.update(g, tx.init(p), p)
    assert state.skipped == 16 + 1 + 1


@eight_and_32
def test_counts_add_up_in_a_scan(v):
    tx, p = v(options=COUNTS), problem.params(only=problem.FEW)
    state = jax.jit(tx.init)(p)

    def step(state, at):
        def spoil(x):
            bad = (jnp.arange(x.size) < at).reshape(x.shape)
            return jnp.where(bad, jnp.nan, x)

        g = jax.tree.map(spoil, problem.grads(only=problem.FEW))
        return tx.update(g, state, p)[1], None

    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, jnp.array([1, 0, 20])))(state)
    assert state.skipped == 21 * len(p)


@eight_and_32
def test_the_count_stays_at_the_largest_number(v):
    tx, p = v(options=COUNTS), problem.params()
    g = spoiled(problem.grads(), 4)  # 12 in all
    for before, after in [
        (MOST - 12, MOST),
        (MOST - 11, MOST),
        (MOST, MOST),
        (MOST - 13, MOST - 1),
    ]:
        state = tx.init(p)._replace(skipped=jnp.int32(before))
        assert tx.update(g, state, p)[1].skipped == after


@eight_and_32
def test_layers_of_a_stack_are_counted(v):
    options = StateOptions(count_skipped=True, stacked=lambda path: path == "rows")
    tx, p = v(options=options), problem.params()
    _, state = tx.update(spoiled(problem.grads(), 9), tx.init(p), p)
    assert state.skipped == 9 * len(p)


@pytest.mark.long
@every(lambda v: v.paged)
def test_pieces_of_a_leaf_add_up(v):
    p = {"cut": jnp.ones((1100, 1024)), "grouped": jnp.ones((300, 512))}
    options = StateOptions(page_bytes=2**20 if v.bits == 8 else 2**22, count_skipped=True)
    tx = v.factory(**v.kwargs, options=options)
    g = spoiled(p, 5)
    g["cut"] = g["cut"].at[700:1100, 3].set(jnp.inf)
    _, state = jax.jit(tx.update)(g, tx.init(p), p)
    assert state.skipped == 5 + 400 + 5


@pytest.mark.parametrize("kind", meshes.KINDS)
@every(lambda v: v.name in ("lion8bit", "lamb8bit", "paged_lion8bit", "lamb32bit"))
def test_shards_of_a_leaf_add_up(v, kind):
    """Every element once, also of a leaf that is on every device."""
    mesh = meshes.make_mesh("4x2", kind)
    tx = v(options=COUNTS)
    g = {name: np.array(x) for name, x in meshes.gradients(1)[0].items()}
    for x in g.values():
        x.reshape(-1)[[0, x.size // 2, -1]] = np.nan, np.inf, -np.inf
    p, g = (meshes.put(x, mesh) for x in (meshes.params(), g))
    state = jax.jit(tx.init, out_shardings=state_sharding(tx, p))(p)
    step = jax.jit(lambda p, g, state: apply_fused(tx, p, g, state)[1])
    state = step(p, g, state)
    assert state.skipped == 3 * len(p) and state.skipped.is_fully_replicated
    assert step(p, g, state).skipped == 6 * len(p)
