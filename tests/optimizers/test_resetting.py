"""Zeros of a state, or of any part of it, are a fresh moment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion import StateOptions, lion8bit
from tests.optimizers import problem
from tests.variants import every

eight_bit = every(lambda v: v.bits == 8)
CODECS = ("power", "dynamic", "linear")
SHAPES = {"rows": (16, 512), "odd_tail": (4097,)}
BLOCKS = np.array([1, 5, 16])  # what is set to zero: the short last one, too


def tree(seed):
    return problem.tree(seed, shapes=SHAPES)


def trained(v, codec="power", steps=3):
    """A state that has seen some gradients, and the parameters of all of them.

    It is on the device, as JAX works on no arrays in host memory; a paged optimizer takes it back.
    """
    tx, p = v(options=StateOptions(codec=codec)), tree(0)
    state = tx.init(p)
    for step in range(1, 1 + steps):
        _, state = tx.update(tree(step), state, p)
    return tx, p, jax.device_put(state, jax.memory.Space.Device)


def fresh(tx, p, state):
    """A new state, at the same step."""
    return tx.init(p)._replace(count=state.count)


def blocks(name):
    """Whether elements are in the blocks that are set to zero."""
    return np.isin(np.arange(np.prod(SHAPES[name])) // 256, BLOCKS).reshape(SHAPES[name])


def kept(v, state, change):
    """The state with `change` made to every slot."""
    return state._replace(**{slot: change(slot, getattr(state, slot)) for slot in v.slots})


def zero_where(part):
    def change(_, slot):
        return {name: jnp.where(part(name), jnp.uint8(0), x) for name, x in slot.items()}

    return change


def assert_as_fresh(v, tx, p, state, part):
    """A step leaves the elements of the part with the moments of a first step, and their update.

    A part is of whole blocks, so that their scales are those of a first step as well.
    """
    g = tree(9)
    updates, new = tx.update(g, state, p)
    first, anew = tx.update(g, fresh(tx, p, state), p)
    for name in SHAPES:
        where = part(name)
        for slot in v.slots:
            got, expected = (np.asarray(getattr(s, slot)[name])[where] for s in (new, anew))
            np.testing.assert_array_equal(got, expected)
        a, b = (np.asarray(u[name])[where] for u in (updates, first))
        if not v.has_ratio:
            np.testing.assert_array_equal(a, b)
        else:
            # The trust ratio is another one, as the rest of the leaf steps from its own moments.
            ratio = a / b
            np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-5)
            assert 0.3 < np.median(ratio) < 3


@pytest.mark.parametrize("codec", CODECS)
@eight_bit
def test_codes_set_to_zero_are_fresh_moments(v, codec):
    tx, p, state = trained(v, codec)
    state = kept(v, state, zero_where(blocks))
    assert_as_fresh(v, tx, p, state, blocks)


@eight_bit
def test_scales_set_to_zero_are_fresh_moments(v):
    tx, p, state = trained(v)

    def zeros(absmax):
        return jax.tree.map(
            lambda x: jnp.where(jnp.isin(jnp.arange(x.size), BLOCKS).reshape(x.shape), 0, x), absmax
        )

    scales = {f"{slot}_absmax" for slot in v.slots}
    state = state._replace(**{name: zeros(getattr(state, name)) for name in scales})
    assert_as_fresh(v, tx, p, state, blocks)


@pytest.mark.parametrize("what", ["codes", "scales", "both"])
@eight_bit
def test_zeros_like_every_slot_are_a_fresh_state(v, what):
    tx, p, state = trained(v)
    zeros = {
        name: jax.tree.map(jnp.zeros_like, getattr(state, name))
        for slot in v.slots
        for name in {"codes": [slot], "scales": [f"{slot}_absmax"]}.get(
            what, [slot, f"{slot}_absmax"]
        )
    }
    got = tx.update(tree(9), state._replace(**zeros), p)
    problem.assert_equal(got, tx.update(tree(9), fresh(tx, p, state), p))


@eight_bit
def test_zeros_like_a_state_are_a_new_one(v):
    tx, p, state = trained(v)
    zeros, new = jax.tree.map(jnp.zeros_like, state), tx.init(p)
    # The value of the layout's entry is then 0, which says nothing.
    problem.assert_equal(zeros._replace(layout=None), new._replace(layout=None))
    problem.assert_equal(tx.update(p, zeros, p)[0], tx.update(p, new, p)[0])


@every(lambda v: v.bits == 8 and "nu" in v.slots)
@pytest.mark.parametrize("slot", ["mu", "nu"])
def test_a_slot_set_to_zero_is_fresh_beside_one_that_is_not(v, slot):
    tx, p, state = trained(v)
    zeros = jax.tree.map(jnp.zeros_like, getattr(state, slot))
    _, new = tx.update(tree(9), state._replace(**{slot: zeros}), p)
    _, anew = tx.update(tree(9), fresh(tx, p, state), p)
    _, on = tx.update(tree(9), state, p)
    for name in v.slots:
        problem.assert_equal(getattr(new, name), getattr(anew if name == slot else on, name))


@eight_bit
def test_some_elements_of_a_block_begin_anew(v):
    """Columns, as of a dead unit: their momentum is a share of the gradient, as at the start."""
    tx, p, state = trained(v)
    columns = np.arange(512) % 7 == 3
    part = {"rows": columns[None], "odd_tail": np.False_}
    state = kept(v, state, zero_where(part.get))
    updates, new = tx.update(jax.tree.map(jnp.zeros_like, p), state, p)
    mu = np.asarray(new.mu["rows"])
    np.testing.assert_array_equal(mu[:, columns], 0)
    # Without a gradient and a moment, nothing is left of a step but its weight decay.
    assert v.kwargs["weight_decay"] > 0
    ratio = np.asarray(updates["rows"] / p["rows"])[:, columns]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    assert -1 < ratio[0, 0] < 0
    assert np.mean(mu[:, ~columns] != 0) > 0.9


def test_a_reset_unit_takes_lion_s_sign_of_its_gradient():
    """As minus the scale, which a byte of zero once was, it would go up whatever the gradient."""
    tx, p = lion8bit(1e-3, weight_decay=0.0), {"w": jnp.zeros((16, 256))}
    state = tx.init(p)
    for step in range(3):
        _, state = tx.update(problem.tree(step, shapes={"w": (16, 256)}), state, p)
    part = np.arange(256) % 2 == 0
    state = state._replace(mu={"w": jnp.where(part[None], jnp.uint8(0), state.mu["w"])})
    g = problem.tree(7, shapes={"w": (16, 256)})
    updates, _ = tx.update(g, state, p)
    np.testing.assert_array_equal(
        np.sign(updates["w"])[:, part], -np.sign(np.asarray(g["w"]))[:, part]
    )
