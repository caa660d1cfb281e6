"""A rule that the library does not have goes everywhere: what CONTRIBUTING says of a new one.

`SIGNUM` is of a kind that no optimizer here is: it reads its new slots, and takes their sign.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion import LionState, StateOptions, apply_fused
from optax_lamblion._optimizers.transform import Settings, make
from tests import oracles
from tests.kernels.interpreted import interpreted
from tests.meshes import problem as meshes
from tests.optimizers import problem
from tests.rules import SIGNUM

B1, RATE, DECAY = 0.875, 2.0**-7, 0.25
SHAPES = {"rows": (64, 512), "odd_tail": (9001,), "small": (5, 7)}


def signum(bits=8, paged=False, **options):
    """Its factory."""
    return make(
        Settings(
            family="signum",
            rule=SIGNUM,
            state_type=LionState,
            numbers=dict(b1=B1),
            learning_rate=RATE,
            weight_decay=DECAY,
            bits=bits,
            paged=paged,
            options=StateOptions(**options),
        )
    )


def run(tx, steps=3, fused=False):
    p = problem.tree(0, shapes=SHAPES)
    state = tx.init(p)
    step = jax.jit(functools.partial(apply_fused, tx) if fused else tx.update)
    for i in range(steps):
        g = problem.tree(i + 1, shapes=SHAPES)
        out, state = step(p, g, state) if fused else step(g, state, p)
        p = out if fused else jax.tree.map(jnp.add, p, out)
    return p, state


def momentum(state, name):
    """In float64, from what is stored."""
    stored = np.asarray(state.mu[name])
    if stored.dtype == np.float32:
        return np.float64(stored)
    return oracles.decode(stored, np.asarray(state.mu_absmax[name]), 256, "power", True)


@pytest.mark.parametrize("by", ["xla", "kernels"])
@pytest.mark.parametrize("fused", [False, True], ids=["update", "apply_fused"])
def test_a_step_is_the_sign_of_the_new_momentum(fused, by):
    tx, before = signum(), problem.tree(0, shapes=SHAPES)
    if by == "kernels":
        with interpreted():
            after, state = run(tx, steps=1, fused=fused)
    else:
        after, state = run(tx, steps=1, fused=fused)
    for name, p in before.items():
        m, g = momentum(state, name), np.float64(problem.tree(1, shapes=SHAPES)[name])
        gap = np.abs(m).max() / 127 * 3 if state.mu[name].dtype == np.uint8 else 1e-7
        assert np.abs(m - (1 - B1) * g).max() <= gap
        expected = p - RATE * (np.sign(m) + DECAY * np.float64(p))
        np.testing.assert_allclose(after[name], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 32])
def test_pages_do_not_change_it(bits):
    expected = run(signum(bits), fused=True)
    problem.assert_equal(run(signum(bits, paged=True, page_min_size=1000), fused=True), expected)


@pytest.mark.parametrize("kind", meshes.KINDS)
def test_a_mesh_does_not_change_it(kind):
    tx = signum()
    alone = meshes.Run(tx)
    on_mesh = meshes.Run(tx, meshes.make_mesh("4x2", kind))
    assert meshes.differing(alone.state, on_mesh.state) == []
    assert meshes.differing(alone.params, on_mesh.params) == []
    assert on_mesh.collectives == {}
