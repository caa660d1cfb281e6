"""Shapes and magnitudes at the edges: sizes round a block, zeros, denormals, huge numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import absmax_shape
from tests import oracles
from tests.optimizers import problem
from tests.variants import every

SHAPES = {
    "empty": (0,),
    "scalar": (),
    "one": (1,),
    "block_minus_one": (255,),
    "block": (256,),
    "block_plus_one": (257,),
    "four_d": (2, 3, 5, 7),
    "four_d_rows": (2, 1, 2, 256),
    "below_threshold": (4095,),
    "threshold": (4096,),
    "above_threshold": (4097,),
}
FEW = {"rows": (2, 512), "odd_tail": (777,)}


def norm(x):
    return np.linalg.norm(np.asarray(x, np.float64))


def finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


def after(tx, gradients, p):
    """State and updates after some steps with fixed parameters."""
    state, updates = tx.init(p), None
    for g in gradients:
        updates, state = tx.update(g, state, p)
    return state, updates


@pytest.fixture(scope="module")
def first_steps():
    """State and updates after one step on all the shapes, by variant."""
    return {}


def first_step(v, first_steps):
    if v.name not in first_steps:
        p, g = problem.tree(0, shapes=SHAPES), problem.tree(1, shapes=SHAPES)
        first_steps[v.name] = (p, g, *after(v(min_8bit_size=0), [g], p))
    return first_steps[v.name]


@pytest.mark.parametrize("shape", SHAPES)
@every()
def test_first_momentum_of_any_shape_is_the_rounded_gradient(v, shape, first_steps):
    p, g, state, _ = first_step(v, first_steps)
    decay = 0.9 if "nu" in v.slots else 0.99
    expected = np.float64(np.float32(1 - decay) * g[shape])
    if v.bits == 32 or not p[shape].size:
        assert state.mu[shape].dtype == np.float32
        np.testing.assert_allclose(state.mu[shape], expected, rtol=1e-6)
        return
    codes, absmax = np.asarray(state.mu[shape]), np.asarray(state.mu_absmax[shape])
    assert absmax.shape == absmax_shape(p[shape].shape, 256)
    np.testing.assert_allclose(absmax, oracles.block_absmax(expected, 256), rtol=1e-6)
    u = oracles.dither(1, shape, 0, codes.shape, 256, decay)
    y = oracles.normalize(expected, absmax, 256)
    rounded, distance, gap = oracles.turned(y, u, "power", True)
    # Float32 is some 1e-7 of a value off, which is at most 127/3 gaps.
    assert ((codes == rounded) | (distance < 1e-5 * gap)).all()


@pytest.mark.parametrize("shape", SHAPES)
@every()
def test_first_update_of_any_shape_is_as_documented(v, shape, first_steps):
    p, g, _, updates = first_step(v, first_steps)
    p, g, update = p[shape], g[shape], updates[shape]
    assert update.shape == p.shape
    lr, decay = v.kwargs["learning_rate"], v.kwargs["weight_decay"]
    if not v.has_ratio:
        # Corrected for their bias, Adam's first moments are the gradient and its square.
        size = 1 if v.takes_signs else np.abs(g) / (np.abs(g) + 1e-8)
        expected = -lr * (np.sign(g) * size + decay * np.asarray(p))
        # In 8 bits its quotient is one of two rounded numbers.
        rounded = v.bits == 8 and not v.takes_signs
        np.testing.assert_allclose(update, expected, rtol=1e-6, atol=lr if rounded else 0)
    else:
        # The trust ratio makes every step as long as the learning rate times the parameter.
        np.testing.assert_allclose(norm(update), lr * norm(p), rtol=1e-5)
        assert np.all(np.sign(update) == -np.sign(g))


@every()
def test_a_block_of_zero_gradients_stays_exactly_zero(v):
    p, g = problem.tree(0, shapes=FEW), problem.tree(1, shapes=FEW)
    g["rows"] = g["rows"].at[0, :256].set(0)
    state, updates = after(v(min_8bit_size=0), [g, g], p)
    np.testing.assert_array_equal(state.mu["rows"][0, :256], 0)
    if v.bits == 8:
        assert state.mu_absmax["rows"][0, 0] == 0
    # What is left of the update is weight decay, along the parameter itself.
    ratio = np.asarray(updates["rows"][0, :256] / p["rows"][0, :256])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert finite((state, updates)) and ratio[0] < 0


@every()
def test_nothing_comes_of_nothing(v):
    p = jax.tree.map(jnp.zeros_like, problem.tree(0, shapes=FEW))
    tx = v(min_8bit_size=0)
    state, updates = after(tx, [p, p], p)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    problem.assert_equal(state, tx.init(p)._replace(count=state.count))


@every()
def test_a_tensor_of_zeros_trains(v):
    """In bitsandbytes' LAMB it never moves, because its norm is zero."""
    p = jax.tree.map(jnp.zeros_like, problem.tree(0, shapes=FEW))
    _, updates = after(v(min_8bit_size=0), [problem.tree(1, shapes=FEW)], p)
    assert all(np.all(u != 0) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-38, 1e-30, 1e-19])
@every()
def test_tiny_gradients_do_no_harm(v, size):
    """Their squares underflow, or they do themselves; a step is never longer than another."""
    p = problem.tree(0, shapes=FEW)
    tiny = jax.tree.map(lambda x: x * np.float32(size), problem.tree(1, shapes=FEW))
    tx = v(min_8bit_size=0)
    state, updates = after(tx, [tiny, tiny], p)
    assert finite((state, updates))
    for name, u in updates.items():
        if not v.has_ratio:
            longest = v.kwargs["learning_rate"] * (1 + v.kwargs["weight_decay"] * np.abs(p[name]))
            assert np.all(np.abs(u) <= longest * (1 + 1e-6))
        else:
            assert norm(u) <= v.kwargs["learning_rate"] * norm(p[name]) * (1 + 1e-5)
    updates, state = tx.update(problem.tree(2, shapes=FEW), state, p)
    assert finite((state, updates)) and all(np.all(u != 0) for u in updates.values())


@pytest.mark.parametrize("size", [1e18, 2.0**63.5, 1e30, 2.0**126.5, 3e38])
@every()
def test_huge_gradients_do_no_harm(v, size):
    """What no float32 moment could hold is skipped; see the limits in `lion` and `lamb`."""
    p = problem.tree(0, shapes=FEW)
    huge = jax.tree.map(
        lambda x: jnp.clip(x, -1, 1) * np.float32(size), problem.tree(1, shapes=FEW)
    )
    tx = v(min_8bit_size=0)
    state, updates = after(tx, [problem.tree(3, shapes=FEW), huge], p)
    assert finite((state, updates))
    limit = 2.0**63 if "nu" in v.slots else 2.0**126
    for name, u in updates.items():
        np.testing.assert_array_equal(u != 0, np.abs(huge[name]) <= limit)
    updates, state = tx.update(problem.tree(2, shapes=FEW), state, p)
    assert finite((state, updates))


@pytest.mark.parametrize("power", [-30, 30])
@every()
def test_codes_do_not_depend_on_the_scale_of_the_gradients(v, power):
    """Powers of two are exact in float32, so every code is the same bit for bit."""
    p = problem.tree(0, shapes=FEW)
    gradients = [problem.tree(step, shapes=FEW) for step in (1, 2, 3)]
    tx = v(min_8bit_size=0, **(dict(eps=0.0) if "nu" in v.slots else {}))
    state, updates = after(tx, gradients, p)
    scaled = [jax.tree.map(lambda x: x * 2.0**power, g) for g in gradients]
    other, other_updates = after(tx, scaled, p)
    problem.assert_equal(other_updates, updates)
    for slot, exponent in zip(v.slots, (power, 2 * power), strict=False):
        for name in FEW:
            stored, scaled = (getattr(x, slot)[name] for x in (state, other))
            if v.bits == 8:
                problem.assert_equal(scaled, stored)
                stored, scaled = (getattr(x, f"{slot}_absmax")[name] for x in (state, other))
            np.testing.assert_array_equal(scaled, stored * 2.0**exponent)
