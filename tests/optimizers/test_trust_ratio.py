"""Arguments that bound the trust ratio of LAMB, or switch it off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import adamw, lamb
from tests.optimizers import problem

OFF = {
    "trust_clip": dict(trust_clip=(1.0, 1.0)),
    "max_unorm": dict(max_unorm=0.0),
    "a schedule of max_unorm": dict(max_unorm=lambda count: jnp.where(count < 0, 1.0, 0.0)),
}


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("bits", [8, 32])
def test_without_it_lamb_is_adamw(bits, name):
    p = problem.params()
    ours = lamb(1e-2, eps=1e-6, weight_decay=0.1, bits=bits, **OFF[name])
    other = adamw(1e-2, eps=1e-6, weight_decay=0.1, bits=bits)
    states = ours.init(p), other.init(p)
    for g in problem.grads(1), problem.grads(2):
        u, mine = jax.jit(ours.update)(g, states[0], p)
        v, its = jax.jit(other.update)(g, states[1], p)
        states = mine, its
        # The step is multiplied out in another order.
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-9), u, v)


def test_a_schedule_may_switch_it_off_and_on():
    p = {"w": jnp.full((8, 8), 2.0)}
    tx = lamb(1.0, max_unorm=lambda count: jnp.where(count == 1, 0.0, 0.25))
    state, lengths = tx.init(p), []
    for _ in range(3):
        updates, state = tx.update({"w": jnp.ones((8, 8))}, state, p)
        lengths.append(float(optax.tree.norm(updates)))
    # A cap of a quarter of the parameter's norm of 16, and Adam's step of 1 for each of 64.
    np.testing.assert_allclose(lengths, [4.0, 8.0, 4.0], rtol=1e-5)
