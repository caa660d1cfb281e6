"""Training goes on from a converted state as from the old one, up to what the new layout rounds.

How far an element may be off is computed, element by element: half the gap between two levels
where moments are rounded to the nearest, as converting does, all of it where rounding is dithered,
as in a step, or where zero is avoided.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion import convert_state
from tests import oracles
from tests.checkpoints import problem
from tests.checkpoints.test_convert_state import FAMILIES, SHAPES, Layout, meant, state_in

PAIRS = [
    (Layout(), Layout("power", 256)),
    (Layout("power", 256), Layout()),
    (Layout("power", 256), Layout("power", 64)),
    (Layout("power", 64), Layout("power", None)),
    (Layout("linear", 256), Layout("power", 256)),
]
B1, B2, EPS, DECAY, RATE = 0.9, 0.99, 1e-8, 0.1, 1e-2
ROUNDING = 2.0**-20  # of the arithmetic in float32, a dozen operations
G, P = (
    {name: np.float32(np.random.default_rng(seed).normal(size=x)) for name, x in SHAPES.items()}
    for seed in (1, 2)
)


def rounding(layout, values, state, name, leaf, dithered=False):
    """By how much storing values in a state may have changed them."""
    if getattr(state, name)[leaf].dtype != np.uint8:
        return 0.0
    absmax = np.asarray(getattr(state, f"{name}_absmax")[leaf])
    y = oracles.normalize(values, absmax, layout.block)
    _, gap = oracles.nearest_excess(y, np.zeros(y.size, int), layout.codec, name == "mu")
    scale = oracles.scale_of(absmax, values.shape, layout.block)
    return (0.5 if name == "mu" and not dithered else 1.0) * gap.reshape(y.shape) * scale


@functools.cache
class GoingOn:
    """A step from an old state, and one from what it was converted to.

    LAMB's without a trust ratio, which is one number for all elements of a leaf.
    """

    def __init__(self, pair, family):
        self.pair, self.states, self.after, self.updates = pair, [], [], []
        kwargs = dict(learning_rate=RATE, b1=B1, b2=B2, weight_decay=DECAY)
        if family == "lamb":
            kwargs |= dict(eps=EPS, trust_clip=(1.0, 1.0))
        for layout in pair:
            tx = layout.optimizer(family, **kwargs)
            old = state_in(pair[0], family)
            state = old if layout == pair[0] else convert_state(old, P, tx)
            updates, after = tx.update(*jax.tree.map(jnp.asarray, (G, state, P)))
            self.states.append(state)
            self.after.append(after)
            self.updates.append(updates)

    def moments(self, name, leaf):
        """What was stored before the step, and how far apart the two may be."""
        old, new = (meant(*x, name, leaf) for x in zip(self.pair, self.states, strict=True))
        off = rounding(self.pair[1], old, self.states[1], name, leaf)
        assert (np.abs(new - old) <= off + ROUNDING * np.abs(old)).all(), (name, leaf)
        return old, new, off

    def moments_after(self, name, leaf):
        """What is stored after it, and how far apart the two may be."""
        g = G[leaf].astype(np.float64)
        keep, add = (B1, g) if name == "mu" and hasattr(self.after[0], "nu") else (B2, g)
        add = add if name == "mu" else g * g
        old, new, off = self.moments(name, leaf)
        bound = keep * off
        for layout, x, after in zip(self.pair, (old, new), self.after, strict=True):
            exact = keep * x + (1 - keep) * add
            bound = bound + rounding(layout, exact, after, name, leaf, dithered=True)
            bound = bound + ROUNDING * (np.abs(keep * x) + np.abs((1 - keep) * add))
        return *(meant(*x, name, leaf) for x in zip(self.pair, self.after, strict=True)), bound


cases = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]} to {pair[1]}")


@cases
@pytest.mark.parametrize("family", FAMILIES)
def test_moments_stay_as_near_as_they_are_rounded(pair, family):
    run = GoingOn(pair, family)
    for name, leaf in itertools.product(FAMILIES[family], SHAPES):
        expected, there, bound = run.moments_after(name, leaf)
        assert (np.abs(there - expected) <= bound).all(), (name, leaf)


@cases
def test_lion_turns_no_sign_but_of_what_is_rounded_over_zero(pair):
    run = GoingOn(pair, "lion")
    for leaf in SHAPES:
        old, _, off = run.moments("mu", leaf)
        mixed = (1 - B1) * G[leaf].astype(np.float64) + B1 * old
        expected, there = (np.asarray(x[leaf]) for x in run.updates)
        same = np.isclose(there, expected, rtol=0, atol=1e-6 * RATE)
        near_zero = np.abs(mixed) <= B1 * off + ROUNDING * np.abs(old)
        assert (same | near_zero).all(), leaf
        assert np.mean(same) > 0.97, leaf


@cases
def test_lamb_steps_as_far_as_its_moments_allow(pair):
    run = GoingOn(pair, "lamb")
    t = 1235
    for leaf in SHAPES:
        mu, _, mu_off = run.moments_after("mu", leaf)
        nu, _, nu_off = run.moments_after("nu", leaf)
        decay = DECAY * P[leaf].astype(np.float64)
        corners = [
            m / (1 - B1**t) / (np.sqrt(np.maximum(v, 0) / (1 - B2**t)) + EPS) + decay
            for m in (mu - mu_off, mu + mu_off)
            for v in (nu - nu_off, nu + nu_off)
        ]
        low, high = np.min(corners, axis=0), np.max(corners, axis=0)
        slack = ROUNDING * np.maximum(np.abs(low), np.abs(high))
        expected, there = (np.asarray(x[leaf], np.float64) / -RATE for x in run.updates)
        for update in (expected, there):
            assert (update >= low - slack).all() and (update <= high + slack).all(), leaf
        assert np.median((high - low) / np.abs(expected)) < 0.5, leaf
        assert problem.bits(run.after[1].count) == problem.bits(np.int32(t))
