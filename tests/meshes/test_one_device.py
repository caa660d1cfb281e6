"""A mesh with Explicit axes and a single device: a program for many devices on a laptop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_lamblion as ol
from pallas_kernels.arithmetic.pieces import CUTTABLE

SHAPES = {"large": (8, CUTTABLE // 8), "small": (16, 48)}


@pytest.mark.parametrize("name", ["lion8bit", "lamb8bit", "lamb32bit", "paged_lamb8bit"])
@pytest.mark.parametrize("spec", [("x", None), (None, "x")])
def test_a_step_is_that_without_a_mesh(name, spec):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    tx = getattr(ol, name)(1e-2, weight_decay=0.1)
    key = jax.random.key(0)
    params = {k: jax.random.normal(key, shape) for k, shape in SHAPES.items()}

    def run(params):
        step = jax.jit(lambda p, g, s: ol.apply_fused(tx, p, g, s), donate_argnums=(0, 2))
        grads = jax.tree.map(jnp.sin, params)
        state = tx.init(params)
        updates = jax.jit(tx.update)(grads, state, params)[0]
        return updates, step(params, grads, state)

    expected = run(params)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        there = {k: jax.device_put(jax.random.normal(key, s), sharding) for k, s in SHAPES.items()}
        found = run(there)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.typeof(found[1][0]["large"]).sharding.spec == PartitionSpec(*spec)
