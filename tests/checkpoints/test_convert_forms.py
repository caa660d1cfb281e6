"""A state is found in whatever it comes: wrapped, as dicts and lists, from NumPy."""

import functools

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import LambState, LionState, StateOptions, convert_state, lamb8bit, lion8bit
from tests.checkpoints import problem

BLOCKS = StateOptions(block_size=64)
NOT_ODD = {"rows": True, "odd_tail": False, "small": True}
LABELS = {"rows": "a", "odd_tail": "b", "small": "b"}


def raw_orbax(state, folder):
    problem.save(folder / "saved", state)
    return problem.restore(folder / "saved")


def through_bytes(state, folder):
    return flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))


FORMS = {
    "as it is": lambda state, folder: state,
    "NumPy": lambda state, folder: jax.tree.map(np.asarray, state),
    "Orbax without a target": raw_orbax,
    "state dict": lambda state, folder: flax.serialization.to_state_dict(state),
    "bytes": through_bytes,
}
WRAPPERS = {
    "alone": lambda lion: lion(1e-3),
    "chain": lambda lion: optax.chain(optax.clip_by_global_norm(1.0), lion(1e-3)),
    "two chains": lambda lion: optax.chain(optax.chain(optax.scale(2.0)), optax.chain(lion(1e-3))),
    "masked": lambda lion: optax.masked(lion(1e-3), NOT_ODD),
    "partition": lambda lion: optax.partition({"a": lion(1e-3), "b": lion(1e-4)}, LABELS),
    "inject_hyperparams": lambda lion: optax.inject_hyperparams(lion)(learning_rate=1e-3),
    "MultiSteps": lambda lion: optax.MultiSteps(lion(1e-3), 2).gradient_transformation(),
    "apply_if_finite": lambda lion: optax.apply_if_finite(lion(1e-3), 2),
    "schedule": lambda lion: optax.chain(
        optax.scale_by_schedule(lambda count: 1.0), lion(lambda count: 1e-3), optax.ema(0.9)
    ),
}  # fmt: skip


in_blocks = functools.partial(lion8bit, options=BLOCKS)


def is_ours(node):
    return isinstance(node, LionState | LambState)


def ours(state):
    return [x for x in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(x)]


def others(state):
    return jax.tree.map(lambda x: None if is_ours(x) else x, state, is_leaf=is_ours)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped(wrap, form, tmp_path):
    """Ours is converted as it is alone, and what is around it stays what it was."""
    p = jax.tree.map(jnp.asarray, problem.params("one device"))
    old_tx, tx = WRAPPERS[wrap](lion8bit), WRAPPERS[wrap](in_blocks)
    old = problem.filled(old_tx.init(p))
    new = convert_state(FORMS[form](old, tmp_path), p, tx)
    assert jax.tree.structure(new) == jax.tree.structure(tx.init(p))
    assert problem.bits(others(new)) == problem.bits(others(old))
    for node, before, fresh in zip(ours(new), ours(old), ours(tx.init(p)), strict=True):
        shapes = jax.tree.map(lambda x: jnp.zeros(x.shape), fresh.mu)
        alone = convert_state(before, shapes, in_blocks(1e-3))
        assert problem.bits(node) == problem.bits(alone)
    same = convert_state(FORMS[form](old, tmp_path / "again"), p, old_tx)
    assert problem.bits(same) == problem.bits(old)


@pytest.mark.parametrize("form", FORMS)
def test_names_that_mean_something_elsewhere(form, tmp_path):
    """Parameters may be called as fields of a state are, as places of a list, or as boxes."""
    p = {
        "mu": {"mu": jnp.ones((16, 512)), "count": jnp.ones(3)},
        "count": [jnp.ones((4096,)), {"nu": jnp.ones(2), "layout": jnp.ones(1)}],
        "attention": {"query": jnp.ones(5), "value": jnp.ones((64, 64)), "0": jnp.ones(4)},
        "value": jnp.ones(3),
        "gnorm_history": jnp.ones(7),
        "mu_absmax": (jnp.ones(8), jnp.ones((8, 512))),
    }
    tx = lamb8bit(options=BLOCKS, percentile_clipping=5)
    old = problem.filled(lamb8bit(percentile_clipping=5).init(p))
    new = convert_state(FORMS[form](old, tmp_path), p, tx)
    assert problem.bits(new) == problem.bits(convert_state(old, p, tx))
    assert jax.tree.structure(new) == jax.tree.structure(tx.init(p))


@pytest.mark.parametrize("form", FORMS)
def test_a_single_array_of_parameters(form, tmp_path):
    p = jnp.ones((16, 512))
    old = problem.filled(lion8bit(percentile_clipping=5).init(p))
    tx = lion8bit(percentile_clipping=5, options=BLOCKS)
    new = convert_state(FORMS[form](old, tmp_path), p, tx)
    assert problem.bits(new) == problem.bits(convert_state(old, p, tx))


def test_a_part_may_be_added_before_or_after():
    """A state is found if it is the only one, wherever in a chain it was."""
    p = problem.params()
    old = problem.filled(lion8bit().init(p))
    expected = problem.bits(convert_state(old, p, in_blocks(1e-3)))
    for tx in (optax.chain(optax.clip(1.0), in_blocks(1e-3)), optax.chain(in_blocks(1e-3))):
        (new,) = ours(convert_state(old, p, tx))
        assert problem.bits(new) == expected
    clipped = (optax.EmptyState(), old)
    assert problem.bits(convert_state(clipped, p, in_blocks(1e-3))) == expected


def test_what_was_lent_by_numpy_is_not_written_over():
    p = problem.params()
    old = jax.tree.map(np.asarray, problem.filled(lion8bit().init(p)))
    before = problem.bits(old)
    step = jax.jit(lambda p, state: lion8bit().update(p, state, p), donate_argnums=1)
    _, state = step(p, convert_state(old, p, lion8bit()))
    step(p, state)
    assert problem.bits(old) == before
