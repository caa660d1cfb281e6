"""Parameters of 16 bits take the steps that are too small for them, where they are asked to."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lamblion
from optax_lamblion import (
    StateOptions,
    adamw8bit,
    apply_fused,
    full_precision,
    lamb8bit,
    lion8bit,
    lion32bit,
    paged_lion8bit,
    scale_by_lion,
    share_moved,
)
from tests import oracles
from tests.optimizers import problem
from tests.variants import every, rows_of

DTYPES = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
EITHER = pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
RATE, STEPS = 1e-5, 1000


def rounded(rounding, **others):
    return StateOptions(param_rounding=rounding, **others)


def full(p, state):
    """Parameters with all that is known of them, float64."""
    has = state.residual is not None
    return jax.tree.map(np.float64, full_precision(p, state) if has else p)


@functools.partial(jax.jit, static_argnums=(0, 4))
def many_steps(tx, p, g, state, steps=STEPS):
    return jax.lax.fori_loop(0, steps, lambda i, x: apply_fused(tx, x[0], g, x[1]), (p, state))


# ----------------------------------------------------------------------------------------- drift


def drifted(v, rounding, dtype, size, grads):
    """How far the mean of parameters goes from 1, and how far it should."""
    decays = grads == 0
    tx = v(learning_rate=RATE, weight_decay=1.0 if decays else 0.0, options=rounded(rounding))
    p = jnp.ones((size // 256, 256), dtype)
    p, state = many_steps(tx, p, jnp.full_like(p, grads), tx.init(p))
    grows = decays or v.has_ratio  # by a share of what there is; else by the same in every step
    sign = -1 if decays else 1
    exact = math.expm1(STEPS * math.log1p(sign * RATE)) if grows else STEPS * RATE
    return full(p, state).mean() - 1, exact


def resident(v):
    return not v.paged


def drifting():
    return pytest.mark.parametrize("v", [pytest.param(v, id=v.name) for v in rows_of(resident)])


@DTYPES
@pytest.mark.parametrize("grads", [-1.0, 0.0], ids=["gradient", "decay"])
@drifting()
def test_residuals_lose_none_of_a_thousand_small_steps(v, dtype, grads):
    found, exact = drifted(v, "compensated", dtype, 4096, grads)
    # A sum in float32 may be rounded by half a unit of its last place, of a step that is 84 of
    # them above 1 and 168 below: 6e-5 after all steps at most. What residuals round is evenly
    # spread: a unit of theirs or two, of 3e-5 in bfloat16.
    assert abs(found - exact) < 1e-4


@DTYPES
@pytest.mark.parametrize("grads", [-1.0, 0.0], ids=["gradient", "decay"])
@drifting()
def test_random_rounding_loses_none_in_the_mean(v, dtype, grads):
    size = 2**18 if dtype == "bfloat16" else 2**16
    found, exact = drifted(v, "stochastic", dtype, size, grads)
    # Of a way of 0.01 in gaps of `eps`, the variance of an element is 0.01 * eps at most: five
    # deviations of the mean. A sum in float32 is rounded as above.
    deviation = math.sqrt(STEPS * RATE * float(jnp.finfo(dtype).eps) / size)
    assert 5 * deviation < 9e-5
    assert abs(found - exact) < 5 * deviation + 6e-5


@DTYPES
@every(lambda v: v.name in ("lion8bit", "lamb32bit"))
def test_the_nearest_number_loses_all_of_them(v, dtype):
    found, exact = drifted(v, "nearest", dtype, 4096, -1.0)
    assert found == 0 and exact > 0.009


def noisy(tx, p, steps=STEPS):
    """Steps with gradients of normal numbers of 16 bits, the same ones whatever is stepped."""

    def body(i, carry):
        g = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), p.shape)
        g = jax.lax.reduce_precision(g, exponent_bits=5, mantissa_bits=7)
        return apply_fused(tx, carry[0], g.astype(p.dtype), carry[1])

    run = jax.jit(lambda p, state: jax.lax.fori_loop(0, steps, body, (p, state)))
    return run(p, tx.init(p))


@DTYPES
@every(lambda v: v.name in ("lion8bit", "lamb8bit", "adamw8bit"))
def test_residuals_follow_a_run_in_float32(v, dtype):
    rng = np.random.default_rng(0)
    p = rng.choice([-1, 1], (32, 256)) * rng.uniform(0.5, 1.5, (32, 256))
    p = jnp.asarray(p, jnp.bfloat16).astype(dtype)
    kwargs = dict(learning_rate=RATE, weight_decay=0.1, min_8bit_size=0)
    exact = np.float64(noisy(v(**kwargs), p.astype(jnp.float32))[0])
    moved = np.abs(exact / np.float64(p) - 1)
    apart = full(*noisy(v(**kwargs, options=rounded("compensated")), p)) / exact - 1
    assert abs(apart.mean()) < 5e-6
    # A residual counts 2**-16 to 2**-15 of a parameter in bfloat16, an eighth of that in float16.
    # A step that is rounded to a number of such units is off by 1/sqrt(6) of one, in the mean of
    # all steps, and these errors add up as a random walk does.
    unit = float(jnp.finfo(dtype).eps) / 256
    assert np.sqrt(np.mean(apart**2)) < math.sqrt(STEPS / 6) * unit
    assert np.sqrt(np.mean(moved**2)) > 5 * np.sqrt(np.mean(apart**2))


# ---------------------------------------------------------------------------------- the same bits

SHAPES = {"rows": (16, 256), "odd_tail": (4097,), "small": (33,), "one": (), "none": (0, 3)}


def steps_of(tx, dtype="bfloat16", steps=3, shapes=None, wrap=jax.jit, **kwargs):
    p = problem.tree(0, dtype, shapes or SHAPES)
    state = tx.init(p)
    step = wrap(lambda p, g, state: apply_fused(tx, p, g, state, **kwargs))
    for i in range(steps):
        p, state = step(p, problem.tree(i + 1, dtype, shapes or SHAPES), state)
    return p, state


@EITHER
@pytest.mark.parametrize("make", [lion8bit, adamw8bit])
def test_compiled_or_not(make, rounding):
    """AdamW's sum may be a multiply-add in one program: residuals are a unit apart, then."""
    tx = make(1e-3, weight_decay=0.1, options=rounded(rounding))
    compiled, eager = steps_of(tx), steps_of(tx, wrap=lambda step: step)
    if make is lion8bit:
        problem.assert_equal(compiled, eager)
    else:
        assert_a_unit_apart(compiled, eager)


def assert_a_unit_apart(a, b, share=1e-3):
    """Parameters in full are equal but for a few elements, and those by a unit.

    That is one of what a parameter was before, which three steps of 1e-3 may leave little of. Where
    a moment beside a turn of its rounding got another code, a step is another one: of few elements.
    """
    trees = full(*a), full(*b), a[1].mu, b[1].mu
    for x, y, m, n in zip(*map(jax.tree.leaves, trees), strict=True):
        apart = np.abs(x - y)
        assert (apart > 0).sum() <= max(share * x.size, 1)
        if m.dtype == jnp.uint8:
            other = np.asarray(m) != np.asarray(n)
            assert other.sum() <= 1e-5 * x.size
            apart[other] = 0
        unit = oracles.unit_of_residual(np.maximum(np.abs(x), np.abs(y)) + 3e-3, "bfloat16")
        unit = unit if a[1].residual is not None else 256 * unit
        assert (apart <= unit).all()


# Leaves in two or three pieces, in rows and with a short last block, and one that is whole.
LARGE = {"cut": (1100, 1024), "cut_ragged": (2**20 + 70_001,), "grouped": (300, 512)}


@EITHER
def test_a_leaf_in_pieces(rounding):
    kwargs = dict(learning_rate=1e-3, weight_decay=0.1)
    options = rounded(rounding, page_bytes=2**20)
    txs = lion8bit(**kwargs, options=options), paged_lion8bit(**kwargs, options=options)
    shapes = {"cut_ragged": LARGE["cut_ragged"]}
    problem.assert_equal(*(steps_of(tx, shapes=shapes, steps=1) for tx in txs))


@EITHER
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("lion8bit", {}),
        ("lion32bit", {}),
        ("adamw8bit", {}),
        ("lamb8bit", {}),
        ("lamb8bit", dict(adam_w_mode=False)),
    ],
    ids=lambda x: x if isinstance(x, str) else "".join(x),
)
def test_paged_or_not(name, extra, rounding):
    kwargs = dict(learning_rate=1e-3, weight_decay=0.1, **extra)
    bits = getattr(optax_lamblion, name)(**kwargs, options=rounded(rounding))
    options = rounded(rounding, page_bytes=2**20 if "8bit" in name else 2**22)
    paged = getattr(optax_lamblion, f"paged_{name}")(**kwargs, options=options)
    a, b = (steps_of(tx, shapes=LARGE, steps=2) for tx in (bits, paged))
    if rounding == "compensated":
        assert b[1].residual["cut"].sharding.memory_kind == "pinned_host"
    if name == "lion8bit":
        problem.assert_equal(a, b)
    else:
        # XLA's CPU compiler contracts sums of products by the shape of the loop.
        assert_a_unit_apart(a, b)


@EITHER
@pytest.mark.parametrize("name", ["lion8bit", "lamb32bit"])
def test_an_axis_of_layers_changes_lamb_alone(name, rounding):
    """A number belongs to an element of the leaf, whether or not the leaf is a stack."""
    shapes = {"stack": (4, 8, 256)}
    make = functools.partial(getattr(optax_lamblion, name), 1e-3, weight_decay=0.1)
    plain = steps_of(make(options=rounded(rounding)), shapes=shapes, steps=1)
    tx = make(options=rounded(rounding, stacked=lambda path: True))
    stacked = steps_of(tx, shapes=shapes, steps=1)
    if name == "lion8bit":
        problem.assert_equal(plain, stacked)
    else:
        # The ratios are others, by less than 0.1, of a step of 1e-3.
        x, y = full(*plain)["stack"], full(*stacked)["stack"]
        gaps = 2 * float(jnp.finfo(jnp.bfloat16).eps) * np.abs(x)
        assert (np.abs(x - y) < gaps + 1e-3).all()


def ragged(p):
    return {name: name != "one" for name in p}


def labels(p):
    return {name: "rest" if name == "one" else "ours" for name in p}


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "clip": lambda tx: optax.chain(optax_lamblion.clip_by_global_norm(1.0), tx),
    "masked": lambda tx: optax.masked(tx, ragged),
    "partition": lambda tx: optax.partition({"ours": tx, "rest": optax.sgd(0.1)}, labels),
}


@EITHER
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers(wrap, rounding):
    """Lion's sign is that of the clipped gradient: all but the momentum stay as they were."""
    tx = lion32bit(1e-3, weight_decay=0.1, options=rounded(rounding))
    bare, wrapped = steps_of(tx, steps=1), steps_of(wrap(tx), steps=1)
    names = [name for name in SHAPES if name != "one"]
    problem.assert_equal(*({k: p[k] for k in names} for p, _ in (bare, wrapped)))
    if rounding == "compensated":
        x, y = (full_precision(*pair) for pair in (bare, wrapped))
        problem.assert_equal({k: x[k] for k in names}, {k: y[k] for k in names})
        assert not np.array_equal(x["rows"], np.float32(bare[0]["rows"]))


@EITHER
def test_injected_rates_and_scaled_gradients(rounding):
    options = rounded(rounding)
    # Without decay, whose product with the rate is one of float32 numbers once they are arrays.
    bare, state = steps_of(lion8bit(1e-3, options=options), steps=1)
    # Optax makes rates arrays of the gradients' dtype, if it is not told another.
    inject = optax.inject_hyperparams(lion8bit, hyperparam_dtype=jnp.float32)
    injected = steps_of(inject(1e-3, options=options), steps=1)
    problem.assert_equal((injected[0], injected[1].inner_state.residual), (bare, state.residual))
    scaled = steps_of(lion8bit(1e-3, options=options), steps=1, grad_scale=0.5)
    problem.assert_equal((scaled[0], scaled[1].residual), (bare, state.residual))


@EITHER
def test_other_parameters_are_not_concerned(rounding):
    p = {"a": jnp.ones((16, 256)), "b": jnp.ones(5)}
    g = jax.tree.map(lambda x: 0.1 * x, p)
    plain, tx = lion8bit(1e-3), lion8bit(1e-3, options=rounded(rounding))
    expected, _ = apply_fused(plain, p, g, plain.init(p))
    found, state = apply_fused(tx, p, g, tx.init(p))
    problem.assert_equal(found, expected)
    problem.assert_equal(tx.update(g, tx.init(p), p)[0], plain.update(g, plain.init(p), p)[0])
    if rounding == "compensated":
        zeros = jax.tree.map(lambda x: jnp.zeros((1,) * x.ndim, jnp.int8), p)
        problem.assert_equal(state.residual, zeros)
        assert full_precision(p, state)["a"] is p["a"]


# -------------------------------------------------------------------------- what is left as it was


@EITHER
@every(lambda v: v.name in ("lion8bit", "lamb32bit", "adamw8bit"))
def test_elements_without_a_usable_gradient_stay_as_they_were(v, rounding):
    tx = v(options=rounded(rounding))
    p, state = steps_of(tx, steps=2, shapes={"w": (16, 256)})
    g = problem.tree(9, "bfloat16", {"w": (16, 256)})["w"]
    g = g.at[0, :3].set(jnp.array([np.nan, np.inf, -np.inf], g.dtype))
    q, new = apply_fused(tx, p, {"w": g}, state)
    problem.assert_equal(q["w"][0, :3], p["w"][0, :3])
    problem.assert_equal(full(q, new)["w"][0, :3], full(p, state)["w"][0, :3])
    assert np.mean(full(q, new)["w"] == full(p, state)["w"]) < 0.9


@EITHER
def test_a_state_that_is_no_number_is_seen(rounding):
    """Also if all of its bits are set, as in memory that is filled with ones."""
    tx, p = adamw8bit(RATE, options=rounded(rounding)), jnp.ones((64, 256), jnp.bfloat16)
    state = tx.init(p)
    none = np.full(state.mu_absmax.shape, 0xFFFFFFFF, np.uint32).view(np.float32)
    p, _ = jax.jit(functools.partial(apply_fused, tx))(p, p, state._replace(mu_absmax=none))
    assert jnp.isnan(p).all()


@EITHER
def test_gradients_of_zero_and_none_change_nothing(rounding):
    tx = lion8bit(1e-3, options=rounded(rounding))  # whose momentum is zero as well
    p, state = steps_of(tx, steps=2)
    fresh = tx.init(p)
    state = fresh._replace(count=state.count, residual=state.residual)
    for g in (jax.tree.map(jnp.zeros_like, p), dict.fromkeys(p)):
        q, new = apply_fused(tx, p, g, state)
        problem.assert_equal(q, p)
        problem.assert_equal(new.residual, state.residual)


@pytest.mark.parametrize("make", [lion8bit, paged_lion8bit, lamb8bit])
def test_a_donated_step_writes_over_all_that_it_was_given(make):
    tx = make(1e-3, weight_decay=0.1, options=rounded("compensated", page_min_size=1000))
    p = problem.tree(0, "bfloat16", {"rows": (64, 1024), "odd_tail": (65537,)})
    state, g = tx.init(p), jax.tree.map(jnp.ones_like, p)
    step = jax.jit(lambda p, g, state: apply_fused(tx, p, g, state), donate_argnums=(0, 2))
    compiled = step.lower(p, g, state).compile()
    size = sum(x.nbytes for x in jax.tree.leaves((p, state)))
    assert sum(x.nbytes for x in jax.tree.leaves(state.residual)) == 64 * 1024 + 65537
    assert compiled.memory_analysis().alias_size_in_bytes == size
    old = jax.tree.leaves((p, state))
    _, state = compiled(p, g, state)
    assert all(x.is_deleted() for x in old)
    kind = "pinned_host" if make is paged_lion8bit else "device"
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.residual)} == {kind}


@EITHER
def test_a_step_has_the_derivatives_of_one_that_rounds_nothing(rounding):
    p = jnp.ones((4, 64), jnp.bfloat16)

    def after(rate, options):
        tx = adamw8bit(rate, options=options)
        return jnp.sum(apply_fused(tx, p, p, tx.init(p))[0].astype(jnp.float32))

    plain, other = (float(jax.grad(after)(1e-3, x)) for x in (None, rounded(rounding)))
    assert other == pytest.approx(plain, rel=1e-6) and abs(plain) > 100


# ---------------------------------------------------------------------------------------- errors

P = {"layer": {"w": jnp.ones((16, 256), jnp.bfloat16), "b": jnp.ones(3)}}


@EITHER
def test_plain_updates_are_refused_by_name(rounding):
    tx = lion8bit(1e-3, options=rounded(rounding))
    needs = (
        rf'`param_rounding="{rounding}"` .*\'layer/w\', bfloat16.*apply_fused\(tx, params, grads'
    )
    with pytest.raises(ValueError, match=needs):
        tx.update(P, tx.init(P), P)
    for wrap in (lambda tx: optax.MultiSteps(tx, 2), lambda tx: optax.apply_if_finite(tx, 3)):
        outer = wrap(tx)
        outer = getattr(outer, "gradient_transformation", lambda outer=outer: outer)()
        with pytest.raises(ValueError, match=r"MultiSteps.*accumulate gradients outside"):
            apply_fused(outer, P, P, outer.init(P))


@EITHER
def test_directions_are_refused_when_they_are_built(rounding):
    with pytest.raises(ValueError, match="returns a direction. Use `lion8bit` with"):
        scale_by_lion(bits=8, options=rounded(rounding))


@pytest.mark.parametrize("name", ["random", "Nearest", None, 1, ["stochastic"]])
def test_roundings_have_names(name):
    with pytest.raises(ValueError, match='one of "nearest", "stochastic", "compensated", got'):
        StateOptions(param_rounding=name)


def test_a_state_without_residuals_or_with_them_is_refused_by_the_other():
    plain, tx = lion8bit(1e-3), lion8bit(1e-3, options=rounded("compensated"))
    with pytest.raises(ValueError, match=r"no `residual`.*convert_state\(state, params, tx\)"):
        apply_fused(tx, P, P, plain.init(P))
    with pytest.raises(ValueError, match=r"has a `residual`, .*param_rounding=\"compensated\""):
        apply_fused(plain, P, P, tx.init(P))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((16, 255), np.int8), np.zeros((1, 1), np.int8), np.zeros((16, 256), np.uint8),
     np.zeros((16, 256), np.float32), 0],
    ids=["shape", "stand-in", "uint8", "float32", "number"],
)  # fmt: skip
def test_residuals_of_another_form_are_refused_by_name(wrong):
    tx = lion8bit(1e-3, options=rounded("compensated"))
    state = tx.init(P)
    residual = {"layer": {**state.residual["layer"], "w": wrong}}
    with pytest.raises(ValueError, match=r"residual\['layer/w'\].*convert_state"):
        apply_fused(tx, P, P, state._replace(residual=residual))
    with pytest.raises(ValueError, match=r"residual.* structure of the gradients"):
        apply_fused(tx, P, P, state._replace(residual={"layer": {"w": wrong}}))


# ----------------------------------------------------------------------------- updates in float32


@every(lambda v: v.name in ("lion8bit", "lamb32bit", "adamw8bit", "paged_lion8bit"))
def test_updates_in_float32_are_those_before_rounding(v):
    p, g = (problem.tree(i, jnp.bfloat16) for i in (0, 1))
    txs = v(), v(options=StateOptions(update_dtype="float32"))
    (plain, state), (updates, same) = (jax.jit(tx.update)(g, tx.init(p), p) for tx in txs)
    assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
    problem.assert_equal(same, state)
    problem.assert_equal(jax.tree.map(lambda x: x.astype(jnp.bfloat16), updates), plain)
    assert any(
        (np.float32(x) != y).any() for x, y in zip(plain.values(), updates.values(), strict=True)
    )
    # Added, they are rounded once.
    with jax.numpy_dtype_promotion("standard"):
        new = optax.apply_updates(p, updates)
    for name, x in new.items():
        assert x.dtype == jnp.bfloat16
        problem.assert_equal(x, (np.float32(p[name]) + np.float32(updates[name])).astype(x.dtype))


@pytest.mark.parametrize(
    "dtypes", [("bfloat16", "float16"), ("float32", "bfloat16"), ("float64",) * 2]
)
def test_updates_are_in_float32_at_least(dtypes):
    with jax.enable_x64():
        p, g = (jnp.ones((16, 256), dtype) for dtype in dtypes)
        tx = lion8bit(1e-3, options=StateOptions(update_dtype=jnp.float32))
        updates, _ = tx.update(g, tx.init(p), p)
        assert updates.dtype == ("float64" if "float64" in dtypes else "float32")


@pytest.mark.parametrize("wrong", ["bfloat16", jnp.float64, "single precision", 32])
def test_updates_have_no_other_dtype(wrong):
    with pytest.raises(ValueError, match="`update_dtype` must be float32, or None"):
        StateOptions(update_dtype=wrong)


# ------------------------------------------------------------------ what parameters hold, in full


def test_full_precision_is_that_of_parameters_and_residuals():
    tx = optax.chain(optax.clip(1.0), lion8bit(1e-3, options=rounded("compensated")))
    p = {"w": jnp.ones((16, 256), jnp.bfloat16), "n": jnp.ones((), jnp.float16), "f": jnp.ones(3)}
    new, state = apply_fused(tx, p, p, tx.init(p))
    out = full_precision(new, state)
    assert {x.dtype for x in out.values()} == {jnp.dtype("float32")} and out["f"] is new["f"]
    np.testing.assert_allclose(out["w"], 0.999, rtol=2.0**-16)
    np.testing.assert_allclose(out["n"], 0.999, rtol=2.0**-18)
    arrays = jax.tree.map(np.asarray, (new, state))
    problem.assert_equal(jax.tree.map(jnp.asarray, full_precision(*arrays)), out)
    problem.assert_equal(jax.jit(full_precision)(new, state), out)
    assert full_precision({}, tx.init({"w": p["w"]})) == {}


def test_full_precision_says_what_it_needs():
    p = {"w": jnp.ones((16, 256), jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"param_rounding=\"compensated\""):
        full_precision(p, lion8bit().init(p))
    state = lion8bit(options=rounded("compensated")).init({"w": p["w"][:3]})
    with pytest.raises(ValueError, match=r"'w' has shape \(16, 256\), and its residual \(3, 256\)"):
        full_precision(p, state)


def test_full_precision_of_residuals_in_host_memory():
    tx = paged_lion8bit(1e-3, options=rounded("compensated", page_min_size=1))
    p = {"w": jnp.ones((16, 256), jnp.bfloat16)}
    p, state = apply_fused(tx, p, p, tx.init(p))
    assert state.residual["w"].sharding.memory_kind == "pinned_host"
    out = full_precision(p, state)["w"]
    assert out.sharding.memory_kind == "device"
    np.testing.assert_allclose(out, 0.999, rtol=2.0**-16)


@DTYPES
def test_share_moved_is_that_of_a_step_to_the_nearest(dtype):
    rng = np.random.default_rng(0)
    p = {"a": jnp.asarray(rng.normal(size=4096), dtype), "f": jnp.ones(3)}
    table = oracles.numbers_of_16_bits(dtype)

    def moved(x, step):
        to = np.float64(np.float32(x) + np.float32(step))
        at = np.searchsorted(table, to)
        near = np.where(to - table[at - 1] < table[at] - to, table[at - 1], table[at])
        return np.mean(near != x)

    x = np.float64(p["a"])
    for step in (1e-4, 1e-3):
        expected = (moved(x, step) + moved(x, -step)) / 2
        assert share_moved(p, step) == {"a": pytest.approx(expected, abs=1e-6)}
    updates = {"a": 1e-3 * rng.normal(size=4096).astype(np.float32), "f": np.ones(3, np.float32)}
    expected = moved(x, updates["a"])
    assert share_moved(p, updates) == {"a": pytest.approx(expected, abs=1e-6)}
    assert 0.05 < expected < 0.99


def test_share_moved_takes_every_tree():
    assert share_moved({}, 1e-3) == {} and share_moved({"f": jnp.ones(3)}, 1e-3) == {}
    assert share_moved(jnp.ones((), jnp.bfloat16), 1.0) == {"": 1.0}
    assert share_moved({"w": np.ones(4, jnp.bfloat16)}, np.float32(1e-9)) == {"w": 0.0}
    assert share_moved({"w": np.ones(4, jnp.bfloat16)}, jnp.float32(1.0)) == {"w": 1.0}
    with pytest.raises(ValueError, match="`step` must be a number, or a tree"):
        share_moved({"w": jnp.ones(4, jnp.bfloat16)}, {"v": jnp.ones(4)})
