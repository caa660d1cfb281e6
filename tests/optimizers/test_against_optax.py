"""The 32-bit variants are Optax's own optimizers.

Those with the bits in their name: without, they are the same (see `test_arguments`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.optimizers import problem
from tests.variants import every

SHAPES = {"scalar": (), "vector": (4097,), "matrix": (16, 256), "zero_init": (2, 3, 5, 144)}
STEPS = 10


def trajectory(tx, dtype=jnp.float32):
    """Parameters after every step, from one start and on the same gradients."""
    p = problem.tree(0, dtype, SHAPES)
    p["zero_init"] = jnp.zeros_like(p["zero_init"])
    state, update, out = tx.init(p), jax.jit(tx.update), []
    for step in range(STEPS):
        updates, state = update(problem.tree(step + 1, dtype, SHAPES), state, p)
        p = optax.apply_updates(p, updates)
        out.append(p)
    return out


def both(v, **extra):
    kwargs = {**v.kwargs, **extra}
    return v.factory(**kwargs), v.oracle(**kwargs)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@every(lambda v: v.name == "lion32bit")
def test_lion_equals_optax_to_the_last_bit(v, weight_decay):
    ours, optaxs = both(v, weight_decay=weight_decay)
    problem.assert_equal(trajectory(ours), trajectory(optaxs))


@every(lambda v: v.name == "lion32bit")
def test_lion_decays_what_optax_decays(v):
    ours, optaxs = both(v, weight_decay=0.1, mask={k: k == "matrix" for k in SHAPES})
    problem.assert_equal(trajectory(ours), trajectory(optaxs))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@every(lambda v: v.name == "adamw32bit")
def test_adamw_equals_optax(v, weight_decay):
    ours, optaxs = both(v, weight_decay=weight_decay, learning_rate=1e-2)
    for a, b in zip(trajectory(ours), trajectory(optaxs), strict=True):
        # Ten steps of a hundredth, and the quotient is of other products.
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-6), a, b)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@every(lambda v: v.name == "lamb32bit")
def test_lamb_equals_optax(v, weight_decay):
    ours, optaxs = both(v, eps=1e-6, weight_decay=weight_decay, learning_rate=1e-2)
    for a, b in zip(trajectory(ours), trajectory(optaxs), strict=True):
        # A step is a hundredth of the parameters' size; float32 sums of squares differ in order.
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-6), a, b)


@every(lambda v: v.bits == 32 and not v.paged)
def test_float64_leaves_agree_with_optax_in_float64(v):
    with jax.enable_x64(True):
        extra = dict(eps=1e-8) if v.family == "lamb" else {}
        ours, optaxs = (trajectory(tx, jnp.float64) for tx in both(v, **extra))
    for a, b in zip(ours, optaxs, strict=True):
        problem.assert_same_kinds(a, b)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-14), a, b)
