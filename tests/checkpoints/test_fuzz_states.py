"""States of any optimizer for any tree: sound, the same from files, and right in other layouts."""

import functools

import flax.serialization
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import optax_lamblion
from optax_lamblion import StateOptions, check_state, convert_state
from tests import fuzzing, oracles

# Few shapes, as storing one anew is compiled for each: matrices, short last blocks, and too small.
LEAVES = st.builds(
    lambda shape, dtype: jnp.zeros(shape, dtype),
    st.sampled_from([(2, 256), (300,), (3, 5, 32), (7,), (), (1,), (0, 4)]),
    st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16]),
)
NAMES = st.text("abcμ_. 0", min_size=1, max_size=3)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(NAMES, inner, min_size=1, max_size=3),
        st.lists(inner, min_size=1, max_size=2),
        st.tuples(inner, inner),
    ),
    max_leaves=4,
)


@st.composite
def arguments(draw):
    """What may differ between two optimizers that go on with each other's state."""
    given = dict(bits=draw(st.sampled_from([8, 32])), paged=draw(st.booleans()))
    options = dict(page_min_size=1)
    if given["bits"] == 8:
        block = draw(st.sampled_from([32, 256, None]))
        given |= dict(block_wise=block is not None, min_8bit_size=draw(st.sampled_from([1, 64])))
        options |= dict(codec=draw(st.sampled_from(oracles.CODECS)), block_size=block or 256)
        options |= dict(keep_32bit=draw(st.sampled_from([None, _odd_names])))
    return given, options


def _odd_names(path):
    return len(path) % 2 == 1


@st.composite
def families(draw):
    """A kind of optimizer, and what both must have in common."""
    name = draw(st.sampled_from(["lion", "lamb", "adamw"]))
    common = dict(percentile_clipping=draw(st.sampled_from([None, 5])))
    if name != "lion":
        common |= dict(amsgrad=draw(st.booleans()))
    return name, common, dict(count_skipped=draw(st.booleans()))


def build(family, different):
    name, common, options = family
    given, more = different
    return getattr(optax_lamblion, name)(**common, **given, options=StateOptions(**options, **more))


def filled(state, seed):
    """A state with something in every array."""
    rng = np.random.default_rng(seed)
    codes = state.mu if state.layout else None

    def moments(name, x):
        if x.dtype == jnp.uint8:
            # Of symmetric signed codes 128 is none.
            value = rng.integers(0, 256, x.shape)
            return np.uint8(np.where(value == 128, 0, value) if name == "mu" else value)
        value = rng.normal(size=x.shape)
        return np.asarray(value if name == "mu" else np.abs(value), x.dtype)

    fields = {"count": np.int32(rng.integers(1, 10**6))}
    for name in [x for x in ("mu", "nu", "nu_max") if getattr(state, x, None) is not None]:
        fields[name] = jax.tree.map(functools.partial(moments, name), getattr(state, name))
        if codes is not None:
            fields[f"{name}_absmax"] = jax.tree.map(
                lambda a, x: np.float32(rng.uniform(0.5, 2, a.shape) * (x.dtype == jnp.uint8)),
                getattr(state, f"{name}_absmax"),
                codes,
            )
    if state.gnorm_history is not None:
        fields["gnorm_history"] = jax.tree.map(
            lambda x: np.float32(rng.uniform(size=x.shape)), state.gnorm_history
        )
    return jax.tree.map(
        lambda x, like: jax.device_put(x, like.sharding), state._replace(**fields), state
    )


def values(state, tx):
    """Moments in float64, by the oracle."""
    (c,) = tx.update.args
    out = {}
    for name in [x for x in ("mu", "nu", "nu_max") if getattr(state, x, None) is not None]:
        leaves = jax.tree.leaves(getattr(state, name))
        scales = getattr(state, f"{name}_absmax")
        scales = [None] * len(leaves) if scales is None else jax.tree.leaves(scales)
        out[name] = [
            oracles.decode(np.asarray(x), np.asarray(a), c.block_size, c.chosen.codec, name == "mu")
            if x.dtype == jnp.uint8
            else np.asarray(x, np.float64)
            for x, a in zip(leaves, scales, strict=True)
        ]
    return out


@fuzzing.settings(12)
@hypothesis.given(TREES, families(), arguments(), arguments(), st.integers(0, 2**16))
def test_a_state_is_sound_and_survives(params, family, of_one, of_other, seed):
    tx, other = build(family, of_one), build(family, of_other)
    assert check_state(tx, params, tx.init(params)).ok
    state = filled(tx.init(params), seed)
    assert check_state(tx, params, state).ok

    raw = flax.serialization.msgpack_restore(flax.serialization.to_bytes(state))
    again = convert_state(raw, params, tx)
    assert check_state(tx, params, again).ok
    jax.tree.map(np.testing.assert_array_equal, again, state)

    # The widest gap between levels is below the largest of a block: 3.1 % of it in nu's power.
    converted = convert_state(state, params, other)
    assert check_state(other, params, converted).ok
    before, after = values(state, tx), values(converted, other)
    for name, rows in before.items():
        for x, y in zip(rows, after[name], strict=True):
            limit = 0.016 * np.abs(x).max(initial=0)
            assert np.abs(x - y).max(initial=0) <= limit, name
