"""Steps can be differentiated, as for meta-learning, and what comes out is finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import lamb8bit, lamb32bit
from tests.variants import optax_lamb

KWARGS = dict(learning_rate=1e-2, weight_decay=0.1)
SHAPE = (16, 256)
RNG = np.random.default_rng(0)
NORMAL = [jnp.asarray(RNG.normal(size=SHAPE), jnp.float32) for _ in range(5)]
ZERO = jnp.zeros(SHAPE)
LEAVES = {
    "zeros": (ZERO, NORMAL[1]),
    "no-gradient": (NORMAL[0], ZERO),
    "zeros-no-gradient": (ZERO, ZERO),
    "normal": (NORMAL[0], NORMAL[1]),
}


def meta_gradient(tx, leaf, steps):
    """The derivatives of what comes of some steps by the parameters and by the gradient."""
    start, gradient = LEAVES[leaf]

    def outcome(p, g):
        p, g = {"w": p}, {"w": g}
        state = tx.init(p)
        for _ in range(steps):
            updates, state = tx.update(g, state, p)
            p = optax.apply_updates(p, updates)
        return jnp.sum(p["w"] * NORMAL[2])

    return jax.grad(outcome, argnums=(0, 1))(start, gradient)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("make", [lamb8bit, lamb32bit])
def test_derivatives_are_finite(make, leaf, steps):
    by_params, by_gradient = meta_gradient(make(eps=1e-8, **KWARGS), leaf, steps)
    assert np.isfinite(by_params).all() and np.isfinite(by_gradient).all()
    assert np.any(by_params)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("leaf", LEAVES)
def test_those_of_32_bits_are_optax_lamb_s(leaf, steps):
    # By a gradient the derivative is what is left of two terms, a share of eps / (|g| + eps). With
    # a small eps that is a matter of their rounding, here and there.
    got, expected = (
        meta_gradient(make(eps=1e-2, **KWARGS), leaf, steps) for make in (lamb32bit, optax_lamb)
    )
    finite = [bool(np.isfinite(x).all()) for x in expected]
    for ours, theirs in zip(got, expected, strict=True):
        ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
        where = np.isfinite(theirs)
        # A few roundings of float32, and those of sums over the leaf, relative to the largest.
        scale = np.abs(theirs[where]).max(initial=0)
        np.testing.assert_allclose(ours[where], theirs[where], rtol=1e-5, atol=1e-5 * scale)
    # Of a gradient of zero Optax knows no derivative.
    assert all(finite) or leaf.endswith("no-gradient")
