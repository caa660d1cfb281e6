"""Every variant solves Optax's two test problems, with 8-bit state however small they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.variants import every

STEPS = 10_000
# Optax's own tolerance for these problems. Lion ends in a cycle as wide as the learning rate;
# weight decay of 1e-4 shifts Rosenbrock's flat valley by less.
TOLERANCE = 3e-2


def parabola():
    goal = jnp.array([1.0, -1.0, 1.0])
    return jnp.array([-1.0, 10.0, 1.0]), goal, lambda x: jnp.sum((x - goal) ** 2)


def rosenbrock():
    def objective(x):
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    return jnp.zeros(2), jnp.ones(2), objective


@pytest.mark.parametrize("problem", [parabola, rosenbrock], ids=lambda f: f.__name__)
@every()
def test_variant_converges(v, problem):
    start, goal, objective = problem()
    tx = v(weight_decay=1e-4, min_8bit_size=0)

    @jax.jit
    def minimize(x):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(jax.grad(objective)(x), state, x)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, tx.init(x)), None, length=STEPS)[0]

    x, state = minimize(start)
    assert state.mu.dtype == (jnp.uint8 if v.bits == 8 else jnp.float32)
    assert state.count == STEPS
    np.testing.assert_allclose(x, goal, rtol=TOLERANCE, atol=TOLERANCE)
