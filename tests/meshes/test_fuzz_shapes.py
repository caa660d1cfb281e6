"""Meshes, shapes and divisions that nobody chose: what docs/meshes.md promises of them.

The judge is the step on one device. Learning rate and decay are large, so that a product which is
rounded before it is added, or not, shows in many elements.
"""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding

from optax_lamblion import (
    StateOptions,
    adamw,
    apply_fused,
    lamb8bit,
    lion,
    lion8bit,
    state_sharding,
)
from tests import fuzzing
from tests.meshes import problem
from tests.meshes.problem import P

few = fuzzing.settings(12)

NUMBERS = dict(learning_rate=0.7, weight_decay=0.3)
SMALL = StateOptions(block_size=32, min_8bit_size=1)
IN_8_BITS = {
    "lion8bit": lion8bit(**NUMBERS, options=SMALL),
    "lamb8bit": lamb8bit(**NUMBERS, options=SMALL),
}
IN_32_BITS = {"lion": lion(**NUMBERS), "adamw": adamw(**NUMBERS)}


@st.composite
def divided(draw, unit):
    """`(shape, sharding)`: shards have a multiple of `unit` elements along the last axis."""
    sizes = draw(st.sampled_from([(8,), (4, 2), (2, 4), (2, 2, 2)]))
    kind = problem.KINDS[draw(st.sampled_from(sorted(problem.KINDS)))]
    names = "abc"[: len(sizes)]
    devices = np.array(jax.devices("cpu")).reshape(sizes)
    mesh = Mesh(devices, tuple(names), axis_types=(kind,) * len(sizes))
    axes = [[] for _ in range(draw(st.integers(1, 3)))]
    for name in draw(st.permutations(names)):
        draw(st.sampled_from(axes)).append(name)
    shard = [draw(st.sampled_from([1, 2, 3, 5])) for _ in axes]
    shard[-1] *= unit
    counts = [int(np.prod([mesh.shape[name] for name in a])) for a in axes]
    shape = (n * count for n, count in zip(shard, counts, strict=True))
    return tuple(shape), NamedSharding(mesh, P(*(tuple(a) or None for a in axes)))


def steps(tx, shape, sharding, fused):
    """The second of two steps, on one device and on the mesh, with what was before it."""
    rng = np.random.default_rng(0)
    p, *grads = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(3))

    def step(p, g, state):
        if fused:
            return apply_fused(tx, p, g, state)
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    run = jax.jit(step)
    before = run(p, grads[0], tx.init(p))
    there = (sharding, state_sharding(tx, p, sharding))
    q, state = jax.device_put(before, there)
    out = jax.jit(step, out_shardings=there)(q, jax.device_put(grads[1], sharding), state)
    return before, run(before[0], grads[1], before[1]), out


@few
@hypothesis.given(
    divided(32), st.sampled_from(sorted(IN_8_BITS | IN_32_BITS)), st.sampled_from([True, False])
)
def test_shards_of_whole_vectors_step_to_the_last_bit(case, name, fused):
    tx = (IN_8_BITS | IN_32_BITS)[name]
    _, (p, state), (p_on_mesh, state_on_mesh) = steps(tx, *case, fused)
    assert problem.differing(state, state_on_mesh) == []
    if name != "lamb8bit":  # its norms are added up in another order
        assert problem.differing(p, p_on_mesh) == []


@few
@hypothesis.given(divided(1), st.sampled_from(sorted(IN_32_BITS)), st.sampled_from([True, False]))
def test_others_to_a_rounding(case, name, fused):
    """Of product and sum XLA's compiler makes a multiply-add for one shape, not for another."""
    tx = IN_32_BITS[name]
    before, alone, on_mesh = steps(tx, *case, fused)
    for field in (lambda x: x[0], lambda x: x[1].mu):
        start, x, y = (np.asarray(field(tree)) for tree in (before, alone, on_mesh))
        # An ulp of the largest that is added for the sum's rounding, and one for a product's.
        largest = functools.reduce(np.maximum, map(np.abs, (start, x, x - start)))
        assert np.all(np.abs(x - y) <= 2 * np.spacing(largest))
