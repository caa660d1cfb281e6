"""Every variant works inside Optax's wrappers, and does there what it does alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import StateOptions
from tests.optimizers import problem
from tests.variants import every

# `1 - b2` in float32 is off by up to half an ulp of 1, relative to 0.001.
INJECTED = 6e-5


def inner(state):
    """The optimizer's own state, inside whatever a wrapper made of it."""
    (own,) = filter(
        lambda x: hasattr(x, "mu_absmax"),
        jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu_absmax")),
    )
    return own


@every()
def test_inject_hyperparams_changes_nothing(v):
    tx = optax.inject_hyperparams(v.factory)(**v.kwargs)
    p, g = problem.params(), problem.grads()
    state = tx.init(p)
    problem.assert_equal(jax.jit(tx.init)(p), state)
    assert set(state.hyperparams) >= {"learning_rate", "b1", "b2", "weight_decay"}
    own, update = problem.compiled(v)
    updates, state = jax.jit(tx.update)(g, state, p)
    expected = update(g, own.init(p), p)
    problem.assert_near((updates, inner(state)), expected, rtol=INJECTED)


@every()
def test_injected_hyperparams_can_be_changed_without_recompiling(v):
    tx = optax.inject_hyperparams(v.factory)(**v.kwargs)
    p, g = problem.params(only=problem.FEW), problem.grads(only=problem.FEW)
    update, state = problem.jit_update(tx), tx.init(p)
    before, after = update(g, state, p)
    problem.assert_same_kinds(after, state)
    changed = {**state.hyperparams, "learning_rate": 2 * state.hyperparams["learning_rate"]}
    doubled, _ = update(g, state._replace(hyperparams=changed), p)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(2 * x, y), before, doubled)
    assert update._cache_size() == 1


@every()
def test_mask_can_be_static_under_inject_hyperparams(v):
    mask = lambda p: jax.tree.map(lambda x: x.ndim > 1, p)  # noqa: E731
    tx = optax.inject_hyperparams(v.factory, static_args=("mask",))(**v.kwargs, mask=mask)
    p, g = problem.params(only=problem.FEW), problem.grads(only=problem.FEW)
    updates, state = jax.jit(tx.update)(g, jax.jit(tx.init)(p), p)
    own = v(mask=mask)
    expected = own.update(g, own.init(p), p)
    problem.assert_near((updates, inner(state)), expected, rtol=INJECTED)


@every()
def test_options_and_clipping_pass_through_inject_hyperparams(v):
    options = StateOptions(block_size=64, min_8bit_size=100)
    tx = optax.inject_hyperparams(v.factory)(
        **v.kwargs, options=options, block_wise=True, percentile_clipping=5
    )
    p, g = problem.params(only=("rows",)), problem.grads(only=("rows",))
    updates, state = jax.jit(tx.update)(g, jax.jit(tx.init)(p), p)
    own = v(options=options, percentile_clipping=5)
    expected = own.update(g, own.init(p), p)
    problem.assert_near((updates, inner(state)), expected, rtol=INJECTED)


@every(lambda v: "multisteps" in v.can)
def test_multi_steps_takes_one_step_with_the_mean_gradient(v):
    own = v()
    tx = optax.MultiSteps(own, every_k_schedule=2)
    p = problem.params(only=problem.FEW)
    g1, g2 = (problem.grads(step, only=problem.FEW) for step in (1, 2))
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps itself needs it
        update = problem.jit_update(tx)
        first, state = update(g1, tx.init(p), p)
        second, state = update(g2, state, p)
    assert all(not np.any(u) for u in jax.tree.leaves(first))
    mean = jax.tree.map(lambda x, y: (x + y) / 2, g1, g2)
    expected = own.update(mean, own.init(p), p)
    problem.assert_near((second, inner(state)), expected, rtol=1e-5)


@every()
def test_masked_leaves_pass_through(v):
    tx = optax.masked(v(), {"rows": True, "odd_tail": False, "small": True})
    p, g = problem.params(), problem.grads()
    updates, state = tx.update(g, tx.init(p), p)
    problem.assert_equal(updates["odd_tail"], g["odd_tail"])
    assert isinstance(inner(state).mu["odd_tail"], optax.MaskedNode)
    expected, _ = problem.compiled(v)[1](g, v().init(p), p)
    problem.assert_near({**updates, "odd_tail": expected["odd_tail"]}, expected, rtol=1e-6)


@pytest.mark.parametrize("argument", ["mask", "keep_32bit"])
@every()
def test_trees_of_bools_fit_a_masked_optimizer(v, argument):
    """Trees shaped like all parameters go with `optax.masked` as they do with Optax's own."""
    bools = {"rows": True, "small": False}
    extra = dict(mask=bools) if argument == "mask" else {}
    extra |= dict(options=StateOptions(keep_32bit=bools)) if argument == "keep_32bit" else {}
    tx = optax.masked(v(**extra), {"rows": True, "small": False})
    p, g = problem.params(only=problem.FEW), problem.grads(only=problem.FEW)
    updates, state = tx.update(g, tx.init(p), p)
    kept = v.bits == 32 or argument == "keep_32bit"
    assert inner(state).mu["rows"].dtype == (np.float32 if kept else np.uint8)
    problem.assert_equal(updates["small"], g["small"])


@every()
def test_partition_gives_each_optimizer_its_leaves(v):
    labels = {"rows": "ours", "odd_tail": "frozen", "small": "sgd"}
    tx = optax.partition(
        {"ours": v(), "frozen": optax.set_to_zero(), "sgd": optax.sgd(1.0)}, labels
    )
    p, g = problem.params(), problem.grads()
    updates, _ = tx.update(g, tx.init(p), p)
    expected, _ = problem.compiled(v)[1](g, v().init(p), p)
    problem.assert_near(updates["rows"], expected["rows"], rtol=1e-6)
    problem.assert_equal(updates["odd_tail"], jnp.zeros_like(p["odd_tail"]))
    problem.assert_equal(updates["small"], -g["small"])


@every()
def test_apply_if_finite_rejects_the_whole_step(v):
    own = v()
    tx = optax.apply_if_finite(own, max_consecutive_errors=5)
    p, g = problem.params(only=problem.FEW), problem.grads(only=problem.FEW)
    update, state = problem.jit_update(tx), tx.init(p)
    updates, after = update({**g, "small": g["small"].at[3].set(jnp.nan)}, state, p)
    problem.assert_equal(updates, jax.tree.map(jnp.zeros_like, p))
    problem.assert_equal(inner(after), inner(state))
    updates, after = update(g, after, p)
    problem.assert_near((updates, inner(after)), own.update(g, own.init(p), p), rtol=1e-6)


@every()
def test_chain_composes(v):
    """Clipping before, scaling after: what is in between sees the clipped gradient."""
    own = v()
    tx = optax.chain(optax.clip_by_global_norm(1.0), own, optax.scale(0.5))
    p, g = problem.params(only=problem.FEW), problem.grads(only=problem.FEW)
    updates, state = jax.jit(tx.update)(g, tx.init(p), p)
    norm = optax.tree.norm(g)
    expected, own_state = own.update(jax.tree.map(lambda x: x / norm, g), own.init(p), p)
    half = jax.tree.map(lambda x: 0.5 * x, expected)
    problem.assert_near((updates, inner(state)), (half, own_state), rtol=1e-5)


@every()
def test_map_params_sees_every_array_beside_its_parameter(v):
    tx = v(percentile_clipping=5)
    state = tx.init(problem.params())
    problem.assert_equal(optax.tree.map_params(tx, lambda x: x, state), state)

    specs = {name: f"spec of {name}" for name in problem.SHAPES}
    seen = optax.tree.map_params(
        tx, lambda _, spec: spec, state, specs, transform_non_params=lambda _: "replicated"
    )
    assert seen.count == "replicated"
    for field in ("mu", "mu_absmax", "nu", "nu_absmax", "gnorm_history"):
        tree = getattr(seen, field, None)
        assert tree in (None, specs), field
    assert seen.mu == seen.gnorm_history == specs
