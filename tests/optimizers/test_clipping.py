"""Percentile clipping: alone, against NumPy, and inside the optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import StateOptions, clip_by_percentile, lion8bit
from tests import oracles
from tests.optimizers import problem
from tests.variants import every

SHAPES = {"rows": (4, 64), "odd_tail": (77,), "scalar": ()}


def gradients(steps):
    """Gradients whose norms vary a hundredfold, not in step between leaves."""
    for step in range(1, steps + 1):
        g = problem.tree(step, shapes=SHAPES)
        sizes = {name: np.float32(10 ** np.sin(step * i)) for i, name in enumerate(SHAPES, 1)}
        yield {name: x * sizes[name] for name, x in g.items()}


def judged(scope, g):
    """The arrays whose norms are compared with a history of their own."""
    if scope == "tensor":
        return dict(g)
    return {"all": np.concatenate([np.ravel(g[name]) for name in SHAPES])}


@pytest.mark.parametrize("percentile", [0, 5, 50, 98])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_clip_by_percentile_is_what_numpy_says(scope, percentile):
    tx = clip_by_percentile(percentile, scope=scope)
    update = jax.jit(tx.update)
    state = tx.init(problem.tree(0, shapes=SHAPES))
    names = SHAPES if scope == "tensor" else ["all"]
    histories = {name: np.zeros(oracles.HISTORY) for name in names}
    clipped = 0
    for t, g in enumerate(gradients(130), 1):  # beyond one turn of the ring
        updates, state = update(g, state)
        scales = {}
        for name, x in judged(scope, g).items():
            histories[name], scales[name] = oracles.percentile_scale(
                histories[name], np.asarray(x, np.float64), t, percentile
            )
            clipped += scales[name] < 1
        for name, u in updates.items():
            expected = np.asarray(g[name]) * scales.get(name, scales.get("all"))
            np.testing.assert_allclose(u, expected, rtol=1e-5, err_msg=f"{name} in step {t}")
    stored = state.gnorm_history if scope == "tensor" else {"all": state.gnorm_history}
    for name in names:
        np.testing.assert_allclose(stored[name], histories[name], rtol=1e-5)
    assert state.count == 130
    assert 0 < clipped < 130 * len(names)


def test_a_leaf_is_clipped_by_its_own_history_or_by_that_of_all():
    """One leaf grows, the other shrinks by more: only the first one's own norm does."""
    first = {"grows": jnp.full([4], 1.0), "shrinks": jnp.full([4], 10.0)}
    second = {"grows": jnp.full([4], 2.0), "shrinks": jnp.full([4], 5.0)}
    for scope, expected in [("tensor", first["grows"]), ("global", second["grows"])]:
        tx = clip_by_percentile(5, scope=scope)
        _, state = tx.update(first, tx.init(first))
        updates, _ = tx.update(second, state)
        np.testing.assert_allclose(updates["grows"], expected, rtol=1e-6)
        np.testing.assert_array_equal(updates["shrinks"], second["shrinks"])


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_the_hundredth_percentile_is_off(scope):
    tx = clip_by_percentile(100, scope=scope)
    state = tx.init(problem.tree(0, shapes=SHAPES))
    for g in gradients(3):
        updates, state = tx.update(g, state)
        problem.assert_equal(updates, g)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_clipped_gradients_keep_their_dtype(scope, dtype):
    tx = clip_by_percentile(5, scope=scope)
    g = {"w": jnp.full([1000], 100, dtype)}  # squares and their sum overflow float16
    state = tx.init(g)
    for size in (1, 3):
        updates, state = tx.update(jax.tree.map(lambda x, k=size: k * x, g), state)
    assert updates["w"].dtype == dtype
    np.testing.assert_allclose(np.float32(updates["w"]), 100, rtol=2**-8)


def test_none_leaves_and_extra_arguments_pass():
    tx = clip_by_percentile(5)
    g = {"w": jnp.ones(3), "none": None}
    updates, state = tx.update(g, tx.init(g), None, value=1.0)
    assert updates["none"] is None and state.gnorm_history["none"] is None


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_a_gradient_of_zeros_first_does_not_clip_all_others_away(scope):
    """As where a layer behind one of zeros has no gradient in the first step."""
    tx = clip_by_percentile(5, scope=scope)
    g = problem.tree(1, shapes=SHAPES)
    _, state = tx.update(jax.tree.map(jnp.zeros_like, g), tx.init(g))
    updates, state = tx.update(g, state)
    problem.assert_equal(updates, g)


@every()
def test_clipping_inside_equals_clipping_before(v):
    inside = v(percentile_clipping=10)
    before = optax.chain(clip_by_percentile(10), v())
    p = problem.params(only=problem.FEW)
    states = inside.init(p), before.init(p)
    for step in range(1, 7):
        g = problem.grads(step, only=problem.FEW)
        g = jax.tree.map(lambda x, s=step: x * s**2, g)  # so that all but the first are clipped
        updates, own = inside.update(g, states[0], p)
        expected, (clip, chained) = before.update(g, states[1], p)
        states = own, (clip, chained)
    problem.assert_near(own.gnorm_history, clip.gnorm_history, rtol=1e-6)
    # Both scale in float32, but XLA contracts the product with what follows only inside.
    problem.assert_near((updates, own._replace(gnorm_history=None)), (expected, chained), rtol=2e-5)


@pytest.mark.parametrize("off", [None, 100])
@every()
def test_clipping_that_is_off_costs_nothing(v, off):
    state = v(percentile_clipping=off).init(problem.params())
    assert state.gnorm_history is None


@every()
def test_history_is_a_hundred_squared_norms_per_leaf(v):
    tx = v(percentile_clipping=5)
    g = problem.grads()
    _, state = tx.update(g, tx.init(problem.params()), problem.params())
    for name, history in state.gnorm_history.items():
        assert history.shape == (100,) and history.dtype == np.float32
        np.testing.assert_allclose(history, np.sum(np.square(g[name])), rtol=1e-6)


@pytest.mark.parametrize("stacked", [False, True], ids=["whole", "layers"])
def test_norms_may_come_from_numpy(stacked):
    """As `jax.device_get` and `flax.serialization.from_bytes` return them."""
    tx = lion8bit(percentile_clipping=5, options=StateOptions(stacked=lambda name: stacked))
    g = {"w": jnp.ones((4, 64))}
    state = tx.init(g)
    expected = tx.update(g, state, g)
    problem.assert_equal(tx.update(g, jax.device_get(state), g), expected)
