"""Gradients with NaN or infinities: bad elements are skipped, and nothing else notices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import StateOptions
from tests.optimizers import problem
from tests.variants import QUICK, VARIANTS, mark_of

SHAPES = {"rows": (2, 512), "odd_tail": (777,)}
# In different blocks, one of them the short last one; two share a block.
BAD = {
    "rows": {5: np.nan, 300: np.inf, 301: -np.inf, 1000: np.nan},
    "odd_tail": {0: -np.inf, 600: np.nan, 776: np.inf},
}
MODES = {
    "": {},
    "clipping": dict(percentile_clipping=5),
    "tensor_wise": dict(block_wise=False),
    "dynamic": dict(options=StateOptions(codec="dynamic")),
}
ADAM_MODES = {"amsgrad": dict(amsgrad=True), "l2": dict(adam_w_mode=False)}
LAMB_MODES = {"max_unorm": dict(max_unorm=0.5)}


def cases(among=lambda mode: True):
    """Factories of the variants with fixed bits, in every mode that acts on them."""
    out = []
    for v in VARIANTS:
        modes = (
            MODES | (ADAM_MODES if "nu" in v.slots else {}) | (LAMB_MODES if v.has_ratio else {})
        )
        for mode, extra in modes.items():
            if among(mode) and (v.bits == 8 or mode not in ("tensor_wise", "dynamic")):
                name = f"{v.name}-{mode}" if mode else v.name
                make = functools.partial(v, min_8bit_size=0, **extra)
                marks = [] if v.name in QUICK else [mark_of(v)]
                out.append(pytest.param(make, id=name, marks=marks))
    return out


def put(tree, values):
    """The tree with some elements replaced: values by flat index by leaf."""

    def replace(name, x):
        flat = np.array(x).ravel()
        flat[list(values[name])] = list(values[name].values())
        return jnp.asarray(flat.reshape(x.shape))

    return {name: replace(name, x) for name, x in tree.items()}


def at_bad(tree):
    """The elements of a tree at the bad places."""
    return {name: np.ravel(x)[list(BAD[name])] for name, x in tree.items()}


def zeros_at_bad(tree):
    return put(tree, {name: dict.fromkeys(places, 0.0) for name, places in BAD.items()})


def tree(seed):
    return problem.tree(seed, shapes=SHAPES)


def train(tx, p, gradients, state=None):
    state = tx.init(p) if state is None else state
    updates = None
    for g in gradients:
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
    return p, state, updates


def finite(tree):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("make", cases())
def test_other_elements_are_what_they_would_be_without_bad_ones(make):
    """Bit for bit, in state and update.

    What a bad element would have been is a gradient of zero where moments and parameter are zero:
    one that moves neither its moments nor a norm.
    """
    tx = make()
    p, gradients = zeros_at_bad(tree(0)), [zeros_at_bad(tree(step)) for step in (1, 2, 3, 4)]
    p, state, _ = train(tx, p, gradients[:-1])
    clean = tx.update(gradients[-1], state, p)
    poisoned = tx.update(put(gradients[-1], BAD), state, p)
    problem.assert_equal(poisoned, clean)


@pytest.mark.parametrize("make", cases())
def test_a_bad_element_does_not_move_and_the_next_step_is_normal(make):
    tx = make()
    p, state, _ = train(tx, tree(0), [tree(1), tree(2)])
    updates, state = tx.update(put(tree(3), BAD), state, p)
    assert finite((updates, state))
    for name, seen in at_bad(updates).items():
        np.testing.assert_array_equal(seen, 0, err_msg=name)
        assert np.count_nonzero(updates[name]) == updates[name].size - len(BAD[name])
    updates, state = tx.update(tree(4), state, p)
    assert finite((updates, state))
    assert all(np.all(u != 0) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("make", cases())
def test_moments_of_a_bad_element_are_kept(make):
    """Those that set their block's scale, too: the scale is then exactly the old one."""
    tx = make()
    peak = put(tree(1), {name: dict.fromkeys(places, 100.0) for name, places in BAD.items()})
    p, state, _ = train(tx, tree(0), [peak])
    _, new = tx.update(put(tree(2), BAD), state, p)
    for slot in ("mu", "nu"):
        if hasattr(state, slot):
            problem.assert_equal(at_bad(getattr(new, slot)), at_bad(getattr(state, slot)))
        scales = getattr(state, f"{slot}_absmax", None)
        if scales is not None:
            held = {name: {place // 256 for place in places} for name, places in BAD.items()}
            for name, blocks in held.items():
                before, after = (np.ravel(getattr(s, f"{slot}_absmax")[name]) for s in (state, new))
                which = sorted(blocks) if before.size > 1 else [0]
                np.testing.assert_array_equal(after[which], before[which])


def lost(p):
    """A gradient without a finite element."""

    def overflow(x):
        return jnp.asarray(np.resize(np.float32([np.nan, np.inf, -np.inf]), x.shape))

    return jax.tree.map(overflow, p)


def assert_learns(tx, p, state, g):
    """A step with this gradient is finite and leaves its mark on the momentum."""
    updates, new = tx.update(g, state, p)
    assert finite((updates, new))
    assert all(np.all(u != 0) for u in jax.tree.leaves(updates))
    _, without = tx.update(jax.tree.map(jnp.zeros_like, g), state, p)
    for name, mu in new.mu.items():
        # In 8 bits a small change can leave a code as it was.
        assert np.mean(mu != without.mu[name]) > 0.5, name


@pytest.mark.parametrize("make", cases(lambda mode: mode != "dynamic"))
def test_a_gradient_without_a_finite_element_changes_only_the_count(make):
    """Not so with the dynamic map: -1 has no code in it, and what is stored again may shrink."""
    tx = make()
    p, state, _ = train(tx, tree(0), [tree(1), tree(2)])
    updates, new = tx.update(lost(p), state, p)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    problem.assert_equal(new._replace(count=state.count), state)


@pytest.mark.parametrize("make", cases())
def test_training_may_begin_with_overflow(make):
    """Loss scaling starts too high on purpose: the first gradients are not finite at all."""
    tx = make()
    p, state, _ = train(tx, tree(0), [lost(tree(0))] * 2)
    problem.assert_equal(p, tree(0))
    assert_learns(tx, p, state, tree(1))


@pytest.mark.parametrize("make", cases(lambda mode: mode == "clipping"))
def test_overflow_now_and_then_does_not_clip_everything_away(make):
    """Every seventh gradient overflows, more often than one in twenty, the percentile."""
    tx = make()
    gradients = [lost(tree(0)) if i % 7 == 0 else tree(i) for i in range(1, 60)]
    p, state, _ = train(tx, tree(0), gradients)
    assert_learns(tx, p, state, tree(60))


@pytest.mark.parametrize("make", cases(lambda mode: mode == ""))
def test_overflow_of_half_precision_gradients_is_skipped(make):
    tx = make()
    p, state, _ = train(tx, tree(0), [tree(1)])
    overflow = {name: x.at[..., 7].set(70000.0).astype(jnp.float16) for name, x in tree(2).items()}
    updates, state = tx.update(overflow, state, p)
    assert finite((updates, state))
    assert all(not np.any(u[..., 7]) and np.all(u[..., :7] != 0) for u in updates.values())
