"""Leaves whose shards would cut blocks: right all the same, and not without a word."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from optax_lamblion import StateOptions, apply_fused, lamb8bit, lion8bit, state_sharding
from tests.meshes import problem
from tests.meshes.problem import P

BLOCKS = 1024
SHAPES = {"wide": (16, 2048), "rows": (24, 1000), "fits": (64, 2048)}
SPECS = {"wide": P(None, ("fsdp", "tp")), "rows": P("fsdp", "tp"), "fits": P("fsdp", "tp")}


def params():
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in SHAPES.items()}


def step(tx, mesh=None):
    """One step, with the warnings that it gives."""
    p = params()
    if mesh is not None:
        p = {k: jax.device_put(x, NamedSharding(mesh, SPECS[k])) for k, x in p.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = tx.init(p)
        if mesh is not None:
            state = jax.device_put(state, state_sharding(tx, p))
            caught.clear()
        out = jax.jit(lambda p, state: apply_fused(tx, p, p, state))(p, state)
        jax.block_until_ready(out)
    return out, [str(w.message) for w in caught]


@pytest.mark.parametrize("kind", problem.KINDS)
@pytest.mark.parametrize("make", [lion8bit, lamb8bit])
def test_the_step_is_right(make, kind):
    tx = make(1e-3, weight_decay=0.1, options=StateOptions(block_size=BLOCKS))
    (p, state), none = step(tx)
    (on_mesh, state_on_mesh), told = step(tx, problem.make_mesh("4x2", kind))
    assert none == [] and len(told) == 1
    assert problem.differing(state, state_on_mesh) == []
    if make is lion8bit:
        assert problem.differing(p, on_mesh) == []
    else:
        for name in p:
            np.testing.assert_allclose(on_mesh[name], p[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", problem.KINDS)
def test_the_warning_names_the_leaf_and_what_fits(kind):
    tx = lion8bit(1e-3, options=StateOptions(block_size=BLOCKS))
    _, (message,) = step(tx, problem.make_mesh("4x2", kind))
    lines = message.splitlines()
    assert "blocks of 1024 elements" in lines[0]
    assert {re.search(r"'(\w+)'", line)[1] for line in lines[1:]} == {"wide", "rows"}
    (wide,) = (line for line in lines if "'wide'" in line)
    assert "16x2048, in shards of 16x256" in wide and "StateOptions(block_size=256)" in wide
    (rows,) = (line for line in lines if "'rows'" in line)
    assert "no block size fits" in rows and "keep_32bit" in rows


@pytest.mark.parametrize("kind", problem.KINDS)
def test_what_it_says_helps(kind):
    options = StateOptions(block_size=256, keep_32bit=lambda path: path == "rows")
    tx = lion8bit(1e-3, options=options)
    (p, state), _ = step(tx)
    (on_mesh, state_on_mesh), told = step(tx, problem.make_mesh("4x2", kind))
    assert told == []
    assert problem.differing((p, state), (on_mesh, state_on_mesh)) == []


def test_state_sharding_warns_as_well():
    mesh = problem.make_mesh("4x2")
    shardings = {k: NamedSharding(mesh, spec) for k, spec in SPECS.items()}
    with pytest.warns(UserWarning, match="'wide'") as caught:
        out = state_sharding(lion8bit(options=StateOptions(block_size=BLOCKS)), params(), shardings)
    assert len(caught) == 1
    assert out.mu["wide"].spec == P(None, ("fsdp", "tp"))  # the codes save memory all the same
    # Of two blocks in a row, each over 1024 elements, "tp" cannot cut one of four.
    assert out.mu_absmax["fits"].spec == P("fsdp", "tp")


def test_many_leaves_are_one_warning():
    mesh = problem.make_mesh("4x2")
    p = {f"w{i:02}": jnp.ones((16, 2048)) for i in range(20)}
    by_name = NamedSharding(mesh, P(None, ("fsdp", "tp")))
    with pytest.warns(UserWarning, match="and 15 more") as caught:
        state_sharding(lion8bit(options=StateOptions(block_size=BLOCKS)), p, by_name)
    assert len(caught) == 1
