"""What Optax promises of an optimizer's `init` and `update`, for every row of the table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.optimizers import problem
from tests.variants import every


@every()
def test_unknown_extra_arguments_are_accepted(v):
    tx = v()
    p = problem.params(only=("small",))
    g = problem.grads(only=("small",))
    expected = tx.update(g, tx.init(p), p)
    problem.assert_equal(tx.update(g, tx.init(p), p, value=jnp.float32(1), unheard_of=3), expected)


@every()
def test_state_and_updates_keep_structure_and_dtypes(v):
    tx, update = problem.compiled(v)
    p = problem.params()
    state = tx.init(p)
    assert isinstance(state, v.state_type)
    updates, new = update(problem.grads(), state, p)
    problem.assert_same_kinds(updates, p)
    problem.assert_same_kinds(new, state)
    assert state.count == 0 and new.count == 1
    for slot in v.slots:
        assert {name: x.dtype for name, x in getattr(new, slot).items()} == {
            name: np.uint8 if v.bits == 8 and name in problem.LARGE else np.float32
            for name in problem.SHAPES
        }


@every()
def test_second_call_does_not_recompile(v):
    tx, update = problem.compiled(v)
    p = problem.committed(problem.params()) if v.paged else problem.params()
    update = problem.jit_update(tx) if v.paged else update
    # The update may be shared with tests that called it with something else before.
    problem.run(tx, 1, update, start=(p, None))
    compiled = update._cache_size()
    problem.run(tx, 3, update, start=(p, None))
    problem.run(tx, 1, update, start=(p, jax.jit(tx.init)(p)))
    assert update._cache_size() == compiled


@every()
def test_schedules_are_seen_at_the_steps_taken_and_do_not_recompile(v):
    def ramp(scale):
        # Optax's schedules do not run under strict dtype promotion.
        return lambda count: scale * (0.5 + 0.1 * count.astype(jnp.float32))

    numbers = dict(learning_rate=1e-3, b1=0.9, b2=0.99, weight_decay=0.1)
    tx = v(**{name: ramp(x) for name, x in numbers.items()})
    update = problem.jit_update(tx)
    p = problem.params(only=problem.FEW)
    p = problem.committed(p) if v.paged else p
    p, state, _ = problem.run(tx, 3, update, start=(p, None))
    assert update._cache_size() == 1

    # The fourth step, three steps having been taken, is that of an optimizer with these numbers.
    fixed = v(**{name: np.float32(x * 0.8) for name, x in numbers.items()})
    g = problem.grads(4, only=problem.FEW)
    problem.assert_near(update(g, state, p), fixed.update(g, state, p), rtol=1e-5)


@every()
def test_init_accepts_shapes_and_can_be_jitted_and_abstract(v):
    tx = v()
    p = problem.params()
    shapes = jax.eval_shape(lambda: p)
    state = tx.init(p)
    problem.assert_equal(tx.init(shapes), state)
    problem.assert_equal(jax.jit(tx.init)(p), state)
    problem.assert_same_kinds(jax.eval_shape(tx.init, shapes), state)


@every()
def test_jitted_and_eager_updates_agree(v):
    tx, update = problem.compiled(v)
    p, state, _ = problem.run(tx, 2, update)
    g = problem.grads(3)
    # Not the same bits: a scalar that is a constant in one program is an operand in the other,
    # and XLA contracts multiply-adds accordingly.
    problem.assert_near(tx.update(g, state, p), update(g, state, p), rtol=1e-6)


@every()
def test_same_step_gives_the_same_bits(v):
    tx, update = problem.compiled(v)
    p, state, _ = problem.run(tx, 2, update)
    g = problem.grads(3)
    problem.assert_equal(update(g, state, p), update(g, state, p))


@every()
def test_update_can_be_one_branch_of_cond(v):
    tx, update = problem.compiled(v)
    p, g = problem.params(), problem.grads()
    state = tx.init(p)

    @jax.jit
    def step(take, g, state, p):
        return jax.lax.cond(take, lambda: tx.update(g, state, p), lambda: (g, state))

    problem.assert_equal(step(jnp.asarray(False), g, state, p), (g, state))
    problem.assert_near(step(jnp.asarray(True), g, state, p), update(g, state, p), rtol=1e-6)


@every()
def test_scan_equals_a_loop(v):
    tx, update = problem.compiled(v)

    @jax.jit
    def scan(p, gs):
        def step(carry, g):
            p, state = carry
            updates, state = tx.update(g, state, p)
            return (optax.apply_updates(p, updates), state), updates

        (p, state), updates = jax.lax.scan(step, (p, tx.init(p)), gs)
        return p, state, jax.tree.map(lambda x: x[-1], updates)

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(problem.grads, (1, 2, 3)))
    looped = problem.run(tx, 3, update)
    problem.assert_near(scan(problem.params(), stacked), looped, rtol=1e-5)


@every(lambda v: "vmap" in v.can)
def test_vmap_trains_a_stack_of_models(v):
    tx, update = problem.compiled(v)
    models = [(problem.params(), problem.grads(1)), (problem.grads(7), problem.grads(2))]
    ps, gs = (jax.tree.map(lambda *x: jnp.stack(x), *trees) for trees in zip(*models, strict=True))
    stacked = jax.jit(jax.vmap(tx.update))(gs, jax.vmap(tx.init)(ps), ps)
    for i, (p, g) in enumerate(models):
        alone = update(g, tx.init(p), p)
        problem.assert_near(jax.tree.map(lambda x, i=i: x[i], stacked), alone, rtol=1e-5)


@every()
def test_none_leaves_stay_none(v):
    tx = v()
    p = {**problem.params(only=problem.FEW), "none": None}
    g = {**problem.grads(only=problem.FEW), "none": None}
    state = tx.init(p)
    updates, new = tx.update(g, state, p)
    assert updates["none"] is None and new.mu["none"] is None
    assert jax.tree.structure(new) == jax.tree.structure(state)
    _, _, expected = problem.run(tx, 1, tx.update, start=(problem.params(only=problem.FEW), None))
    problem.assert_equal({k: u for k, u in updates.items() if u is not None}, expected)


@every()
def test_a_leaf_without_a_gradient_is_left_alone(v):
    tx, update = problem.compiled(v)
    p, state, _ = problem.run(tx, 1, update)
    updates, new = tx.update({**problem.grads(2), "rows": None}, state, p)
    assert updates["rows"] is None
    for slot in v.slots:
        problem.assert_equal(getattr(new, slot)["rows"], getattr(state, slot)["rows"])
        assert np.any(getattr(new, slot)["small"] != getattr(state, slot)["small"])
    assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize("nothing", [{}, ()], ids=repr)
@every()
def test_a_tree_without_leaves_is_no_problem(v, nothing):
    tx = v()
    updates, state = jax.jit(tx.update)(nothing, tx.init(nothing), nothing)
    assert updates == nothing
    assert state.count == 1


@every()
def test_a_single_array_is_a_tree(v):
    tx = v()
    p, g = problem.params()["rows"], problem.grads()["rows"]
    updates, state = tx.update(g, tx.init(p), p)
    assert updates.shape == p.shape
    assert state.mu.dtype == (np.uint8 if v.bits == 8 else np.float32)
