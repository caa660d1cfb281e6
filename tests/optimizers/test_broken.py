"""What is broken beyond repair is seen: as NaN, where Optax's optimizers have one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion import apply_fused, lamb8bit, lamb32bit
from tests.optimizers import problem
from tests.variants import every

SHAPES = {"rows": (16, 512), "odd_tail": (4097,)}
lions = every(lambda v: v.takes_signs)
lambs = every(lambda v: v.has_ratio)
ways = pytest.mark.parametrize("fused", [False, True], ids=["update", "apply_fused"])


def tree(seed):
    return problem.tree(seed, shapes=SHAPES)


def step(tx, p, g, state, fused):
    """Updates, or new parameters, and the new state."""
    return apply_fused(tx, p, g, state) if fused else tx.update(g, state, p)


def trained(v, **kwargs):
    tx, p = v(**kwargs), tree(0)
    _, state = tx.update(tree(1), tx.init(p), p)
    # JAX works on no arrays in host memory; a paged optimizer takes them back.
    return tx, p, jax.device_put(state, jax.memory.Space.Device)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@ways
@lions
def test_a_momentum_that_is_no_number_is_seen(v, fused, bad):
    """Of a block by its scale, of an element in 32 bits by itself; nothing beside it is touched."""
    tx, p, state = trained(v)
    if v.bits == 8:
        at = np.isin(np.arange(4097) // 256, [3, 16])
        absmax = state.mu_absmax["odd_tail"].at[jnp.array([3, 16])].set(bad)
        broken = state._replace(mu_absmax={**state.mu_absmax, "odd_tail": absmax})
    else:
        at = np.isin(np.arange(4097), [3, 4096])
        mu = state.mu["odd_tail"].at[jnp.array([3, 4096])].set(bad)
        broken = state._replace(mu={**state.mu, "odd_tail": mu})
    for _ in range(2):  # and stays to be seen
        out, new = step(tx, p, tree(2), broken, fused)
        expected, state = step(tx, p, tree(2), state, fused)
        np.testing.assert_array_equal(np.isnan(out["odd_tail"]), at)
        np.testing.assert_array_equal(
            np.asarray(out["odd_tail"])[~at], np.asarray(expected["odd_tail"])[~at]
        )
        problem.assert_equal(out["rows"], expected["rows"])
        broken = new


@ways
@lions
def test_a_schedule_that_fails_once_is_seen(v, fused):
    """A decay of the momentum that is no number for one step leaves none behind."""

    def b2(count):
        return jnp.where(count == 1, jnp.nan, 0.99)

    tx, p = v(b2=b2), tree(0)
    by_optax = [v.oracle(**{**v.kwargs, "b2": x}) for x in (0.99, np.nan, 0.99)]
    state, its_state = tx.init(p), by_optax[0].init(p)
    for i, its in enumerate(by_optax):
        out, state = step(tx, p, tree(i + 1), state, fused)
        expected, its_state = its.update(tree(i + 1), its_state, p)
        for name in SHAPES:
            lost = np.isnan(out[name])
            np.testing.assert_array_equal(lost, np.isnan(expected[name]))
            assert lost.all() == lost.any() == (i == 2)


@ways
@lambs
def test_a_parameter_that_is_no_number_is_seen_in_its_leaf(v, fused):
    """The trust ratio of a leaf without a norm is none, as in `optax.lamb`."""
    tx, p, state = trained(v)
    broken = {**p, "odd_tail": p["odd_tail"].at[17].set(jnp.nan)}
    out, _ = step(tx, broken, tree(2), state, fused)
    expected, _ = step(tx, p, tree(2), state, fused)
    assert np.isnan(out["odd_tail"]).all()
    problem.assert_equal(out["rows"], expected["rows"])
    optax_s, _ = v.oracle(**v.kwargs).update(tree(2), v.oracle(**v.kwargs).init(p), broken)
    assert np.isnan(optax_s["odd_tail"]).all() and np.isfinite(optax_s["rows"]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@every(lambda v: v.bits == 8 and v.has_ratio)
@pytest.mark.parametrize("slot", ["mu", "nu"])
def test_a_scale_that_is_no_number_is_seen_in_its_leaf(v, slot, bad):
    tx, p, state = trained(v)
    name = f"{slot}_absmax"
    absmax = getattr(state, name)
    broken = {**absmax, "odd_tail": absmax["odd_tail"].at[3].set(bad)}
    updates, _ = tx.update(tree(2), state._replace(**{name: broken}), p)
    assert np.isnan(updates["odd_tail"]).any()
    problem.assert_equal(updates["rows"], tx.update(tree(2), state, p)[0]["rows"])


def test_one_huge_gradient_does_not_blow_up_the_steps_beside_it():
    """Second moments of 1e-10 in a block whose scale is 1e27 are not zero, and not stored as zero:
    their quotient is below all normal numbers."""
    p = {"w": jnp.ones((16, 256))}
    huge = jax.tree.map(lambda x: 1e-5 * x, problem.tree(1, shapes={"w": (16, 256)}))
    huge["w"] = huge["w"].at[3, 7].set(1e15)

    def largest(make):
        tx = make(1.0, weight_decay=0.0)
        state, sizes = tx.init(p), []
        for i in range(30):
            g = jax.tree.map(lambda x: 1e-5 * x, problem.tree(i, shapes={"w": (16, 256)}))
            updates, state = tx.update(g if i else huge, state, p)
            sizes.append(float(jnp.abs(updates["w"]).max()))
        return max(sizes)

    coded, exact = largest(lamb8bit), largest(lamb32bit)
    assert coded < 1.5 * exact
