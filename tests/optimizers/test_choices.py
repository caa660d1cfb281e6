"""Choices of leaves: a tree, a prefix, a function, and what is both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion import StateOptions, lamb, lion8bit

P = {"w": jnp.ones((16, 256)), "b": jnp.ones(300)}
OPTIONS = dict(min_8bit_size=1)


@jax.tree_util.register_pytree_node_class
class Model(dict):
    """A tree that can be called, as modules of Equinox can."""

    def __call__(self, *args):
        raise AssertionError("A tree of bools was called.")

    def tree_flatten(self):
        return list(self.values()), tuple(self)

    @classmethod
    def tree_unflatten(cls, names, leaves):
        return cls(zip(names, leaves, strict=True))


MODEL = Model(P)
CHOICES = {
    "tree": {"w": True, "b": False},
    "NumPy": {"w": np.True_, "b": np.False_},
    "arrays": {"w": jnp.array(True), "b": jnp.array(False)},
    "function": lambda x: x == "w" if isinstance(x, str) else {"w": True, "b": False},
}


def decays(mask, params=P):
    """Which leaves a mask lets decay."""
    tx = lamb(1e-2, weight_decay=0.5, mask=mask)
    return moved(tx, params)


def moved(tx, params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    return {name: bool(jnp.any(x != 0)) for name, x in updates.items()}


@pytest.mark.parametrize("name", CHOICES)
def test_a_mask(name):
    assert decays(CHOICES[name]) == {"w": True, "b": False}


def test_a_mask_that_is_a_model():
    assert decays(Model(w=True, b=False), MODEL) == {"w": True, "b": False}


def test_a_mask_that_is_a_prefix():
    params = {"layer": P, "head": P}
    updates = lamb(1e-2, weight_decay=0.5, mask={"layer": False, "head": True})
    zeros = jax.tree.map(jnp.zeros_like, params)
    out, _ = updates.update(zeros, updates.init(params), params)
    assert all(bool(jnp.all(x == 0)) for x in out["layer"].values())
    assert all(bool(jnp.all(x != 0)) for x in out["head"].values())


@pytest.mark.parametrize("name", CHOICES)
def test_leaves_in_32_bits(name):
    state = lion8bit(options=StateOptions(keep_32bit=CHOICES[name], **OPTIONS)).init(P)
    assert {k: x.dtype.name for k, x in state.mu.items()} == {"w": "float32", "b": "uint8"}


def test_leaves_in_32_bits_that_a_model_names():
    options = StateOptions(keep_32bit=Model(w=True, b=False), **OPTIONS)
    state = lion8bit(options=options).init(MODEL)
    assert {k: x.dtype.name for k, x in state.mu.items()} == {"w": "float32", "b": "uint8"}


@pytest.mark.parametrize("name", CHOICES)
def test_stacks(name):
    options = StateOptions(stacked=CHOICES[name], **OPTIONS)
    state = lion8bit(percentile_clipping=5, options=options).init(P)
    assert {k: x.shape for k, x in state.gnorm_history.items()} == {"w": (16, 100), "b": (100,)}
