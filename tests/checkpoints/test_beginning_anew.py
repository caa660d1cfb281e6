"""Zeros in a part of a restored state make that part begin anew, whatever its codec."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion import StateOptions, convert_state, lamb, lion, restore_target
from tests import oracles
from tests.checkpoints import problem

RATE, B1, B2 = 1e-3, 0.9, 0.99
FAMILIES = {"lion": ("mu",), "lamb": ("mu", "nu")}


def optimizer(family, codec, bits=8):
    kwargs = dict(learning_rate=RATE, b1=B1, b2=B2, bits=bits)
    if family == "lamb":
        kwargs |= dict(trust_clip=(1.0, 1.0), weight_decay=0.0)
    return {"lion": lion, "lamb": lamb}[family](options=StateOptions(codec=codec), **kwargs)


def part_of(p):
    """Every third column, on the devices of the parameters."""
    masks = jax.tree.map(lambda x: np.broadcast_to(np.arange(x.shape[-1]) % 3 == 0, x.shape), p)
    return jax.tree.map(lambda mask, x: jax.device_put(mask, x.sharding), masks, p)


@pytest.mark.parametrize("place", ["one device", "8 devices"])
@pytest.mark.parametrize("codec", oracles.CODECS)
@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_in_a_part(family, codec, place, tmp_path):
    tx, p, g = optimizer(family, codec), problem.params(place), problem.params(place, seed=1)
    problem.save(tmp_path / "saved", problem.filled(tx.init(p)))
    target = restore_target(tx, p, problem.metadata(tmp_path / "saved"))
    restored, part = problem.restore(tmp_path / "saved", target), part_of(p)

    def emptied(state):
        def where(x):
            return jax.tree.map(lambda part, x: jnp.where(part, 0, x), part, x)

        return state._replace(**{name: where(getattr(state, name)) for name in FAMILIES[family]})

    fresh = emptied(restored)
    assert problem.structs(fresh) == problem.structs(restored)
    assert problem.bits(convert_state(fresh, p, tx)) == problem.bits(fresh)
    # In 32 bits: zeros there, and what was there elsewhere.
    wide = optimizer(family, codec, bits=32)
    expected = emptied(convert_state(restored, p, wide))
    assert problem.bits(convert_state(fresh, p, wide)) == problem.bits(expected)
    # The next step is that of new moments: in the part it goes by the gradient alone.
    updates, after = jax.jit(tx.update)(g, fresh, p)
    for leaf in problem.SHAPES:
        there, slope = np.asarray(part[leaf]), np.asarray(g[leaf], np.float64)
        moments = {"mu": (1 - (B2 if family == "lion" else B1)) * slope, "nu": (1 - B2) * slope**2}
        for name in FAMILIES[family]:
            assert_stored(moments[name], after, name, leaf, codec, there)
        steps = np.asarray(updates[leaf])[there]
        if family == "lion":
            np.testing.assert_array_equal(steps, -np.float32(RATE) * np.sign(slope[there]))
        else:
            assert (np.sign(steps) * np.sign(slope[there]) <= 0).all()


def assert_stored(exact, state, name, leaf, codec, there):
    """What is stored of a part is one of the two levels around it."""
    x = np.asarray(getattr(state, name)[leaf])
    if x.dtype != np.uint8:
        # A product and what made its factor, in float32.
        np.testing.assert_allclose(x[there], exact[there], rtol=4 * 2.0**-24)
        return
    absmax = getattr(state, f"{name}_absmax")[leaf]
    y = oracles.normalize(exact, absmax, 256)
    right = oracles.admissible(
        # As exact as above, and as its scale is.
        y,
        x,
        codec,
        name == "mu",
        slack=8 * 2.0**-24 * np.abs(y),
        zero_rule=name == "nu",
    )
    assert right[there].all(), (name, leaf)
