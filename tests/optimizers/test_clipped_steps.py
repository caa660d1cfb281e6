"""Behind `clip_by_global_norm`, a step by `apply_fused` is what it is behind Optax's clip.

The gradient is multiplied where it is read, and not divided and multiplied before: a few roundings,
which turn the code of a value at a tie.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import (
    StateOptions,
    apply_fused,
    clip_by_global_norm,
    clip_by_percentile,
    lion8bit,
    lion32bit,
)
from tests.kernels.interpreted import interpreted
from tests.optimizers import problem
from tests.variants import every

# The last is finite, but its square is not.
BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "overflow": 1e25}


CLIPS = clip_by_global_norm, optax.clip_by_global_norm


def chains(v, max_norm=1.0, **overrides):
    """The optimizer behind our clip and behind Optax's."""
    return [optax.chain(clip(max_norm), v(**overrides)) for clip in CLIPS]


@functools.cache
def compiled(tx):
    """A step, once for all gradients."""
    return jax.jit(lambda p, g, state: apply_fused(tx, p, g, state))


def fused_steps(tx, steps=1, make=problem.grads):
    """Parameters and state after some steps of `apply_fused`."""
    p = problem.committed(problem.params())
    state, step = tx.init(p), compiled(tx)
    for i in range(1, steps + 1):
        p, state = step(p, make(i), state)
    return p, state


@every()
def test_a_step_behind_ours_is_one_behind_optaxs(v):
    problem.assert_near(*map(fused_steps, chains(v)), rtol=1e-5)


@every(lambda v: v.bits == 32 and not v.paged)
def test_steps_in_32_bits_are_those_of_optax(v):
    kwargs = dict(eps=1e-6) if v.family == "lamb" else {}
    ours = optax.chain(clip_by_global_norm(1.0), v(**kwargs))
    optaxs = optax.chain(optax.clip_by_global_norm(1.0), v.oracle(**v.kwargs, **kwargs))
    (p, _), (q, _) = (fused_steps(tx, 5) for tx in (ours, optaxs))
    for name, x in p.items():  # as `test_against_optax`, of which steps are a few times as long
        np.testing.assert_allclose(x, q[name], rtol=1e-6, atol=1e-6)


def spoiled(bad):
    """Gradients by step, the second ones with something that is not finite in a small leaf."""

    def make(step):
        g = problem.grads(step)
        return g | {"small": g["small"].at[7].set(bad)} if step == 2 else g

    return make


def skipped(bad):
    """How many elements such a gradient leaves alone: an infinity alone is NaN, others are zero."""
    if np.isnan(bad):
        return sum(x.size for x in problem.params().values())
    return int(np.isinf(bad))


@functools.cache
def counting(v, kernels):
    """As `chains`, anew for kernels."""
    del kernels
    return chains(v, options=StateOptions(count_skipped=True))


@pytest.mark.parametrize("kernels", [False, True], ids=["xla", "kernels"])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@every(lambda v: v.name in ("lion8bit", "lamb8bit", "adamw8bit"))
def test_what_is_not_finite(v, bad, kernels):
    txs = counting(v, kernels)
    with interpreted() if kernels else contextlib.nullcontext():
        ours, optaxs = (fused_steps(tx, 2, spoiled(bad)) for tx in txs)
    problem.assert_near(ours, optaxs, rtol=1e-5)
    assert ours[1][1].skipped == skipped(bad)


WITH_HISTORY = chains(functools.partial(lion32bit, 1e-2), percentile_clipping=5)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_histories_skip_what_is_not_finite(bad):
    """As where the gradients are clipped by Optax: nothing is left to record."""
    once, twice = (
        [fused_steps(tx, n, spoiled(bad))[1][1].gnorm_history for tx in WITH_HISTORY]
        for n in (1, 2)
    )
    problem.assert_near(*twice, rtol=1e-6)
    problem.assert_equal(once, twice)


@every(lambda v: v.bits == 8 and not v.paged)
def test_both_kinds_of_clipping(v):
    """The history of percentiles is of gradients that are clipped already."""

    def growing(step):
        return jax.tree.map(lambda x: x * step**2, problem.grads(step))

    txs = chains(v, 200.0, percentile_clipping=10)  # which the third ones exceed
    (p, state), (q, optaxs) = (fused_steps(tx, 3, growing) for tx in txs)
    problem.assert_near(state[1].gnorm_history, optaxs[1].gnorm_history, rtol=1e-5)
    problem.assert_near(p, q, rtol=1e-3)  # codes at ties, three times


def test_layers_have_norms_of_their_own():
    make = functools.partial(lion32bit, options=StateOptions(stacked=lambda name: name == "rows"))
    ours, optaxs = (fused_steps(tx, 2) for tx in chains(make, percentile_clipping=5))
    assert ours[1][1].gnorm_history["rows"].shape == (16, 100)
    problem.assert_near(ours, optaxs, rtol=1e-5)


def test_clips_in_a_row():
    """Each goes by what the ones before have left."""

    def tx(clip):
        percentiles = [clip_by_percentile(5), clip_by_percentile(5, scope="global")]
        clips = clip(3.0), clip(2.0), optax.scale(0.7), clip(1.0), *percentiles, clip(0.5)
        return optax.chain(*clips, lion32bit(1e-2, percentile_clipping=5))

    ours, optaxs = (fused_steps(tx(clip), 3) for clip in CLIPS)
    problem.assert_near(jax.tree.leaves(ours), jax.tree.leaves(optaxs), rtol=1e-5)


WRAPPERS = {
    "masked clip": lambda clip, tx: optax.chain(
        optax.masked(clip(1.0), {"rows": True, "odd_tail": False, "small": True}), tx
    ),
    "masked": lambda clip, tx: optax.masked(
        optax.chain(clip(1.0), tx), {"rows": True, "odd_tail": True, "small": False}
    ),
    "partition": lambda clip, tx: optax.chain(
        clip(1.0),
        optax.partition(
            {"ours": tx, "other": optax.sgd(0.1)},
            {"rows": "ours", "odd_tail": "other", "small": "ours"},
        ),
    ),
    "injected": lambda clip, tx: optax.chain(optax.inject_hyperparams(clip)(1.0), tx),
    "multi_steps": lambda clip, tx: optax.MultiSteps(
        optax.chain(clip(1.0), tx), 2
    ).gradient_transformation(),
    "accumulated before": lambda clip, tx: optax.chain(
        clip(1.0), optax.MultiSteps(tx, 2).gradient_transformation()
    ),
    "if finite": lambda clip, tx: optax.apply_if_finite(optax.chain(clip(1.0), tx), 3),
    "between": lambda clip, tx: optax.chain(clip(1.0), optax.add_decayed_weights(0.1), tx),
    "flattened": lambda clip, tx: optax.chain(optax.flatten(clip(1.0)), tx),
    "no optimizer of ours": lambda clip, tx: optax.chain(clip(1.0), optax.adam(1e-2)),
    "nested": lambda clip, tx: optax.chain(
        clip(1.0), optax.chain(optax.identity(), tx), optax.identity()
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers(wrap):
    tx = lion8bit(1e-2, weight_decay=0.1)
    with jax.numpy_dtype_promotion("standard"):
        ours, optaxs = (
            fused_steps(wrap(clip, tx), 2)
            for clip in (clip_by_global_norm, optax.clip_by_global_norm)
        )
    problem.assert_near(jax.tree.leaves(ours), jax.tree.leaves(optaxs), rtol=1e-5)


def test_no_tracer_outlives_the_call():
    tx = optax.chain(clip_by_global_norm(1.0), lion8bit(1e-2, percentile_clipping=5))
    p = problem.params()
    with jax.checking_leaks():
        fused = jax.jit(lambda p, g, state: apply_fused(tx, p, g, state, grad_scale=0.5))
        fused(p, problem.grads(), tx.init(p))


def test_an_update_may_be_compiled_by_itself():
    """The request passes into it, and its notes do not."""

    def tx(clip):
        inner = optax.chain(clip(0.7), optax.sgd(0.1))

        @jax.jit
        def update(updates, state, params=None, **extra_args):
            return inner.update(updates, state, params, **extra_args)

        compiled = optax.GradientTransformationExtraArgs(inner.init, update)
        return optax.chain(clip(1.0), compiled, optax.scale(0.5))

    problem.assert_near(*(fused_steps(tx(clip), 2) for clip in CLIPS), rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_step_may_be_mapped(jit):
    """Every member of a population has a norm of its own."""
    tx = optax.chain(clip_by_global_norm(1.0), lion32bit(1e-2))
    p, g = problem.params(only=problem.FEW), problem.grads(only=problem.FEW)
    two = jax.tree.map(lambda x: jnp.stack([x, 7 * x]), (p, g))
    step = jax.vmap(lambda p, g: apply_fused(tx, p, g, tx.init(p)))
    out = (jax.jit(step) if jit else step)(*two)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], two)
        expected = apply_fused(tx, *one, tx.init(one[0]))
        problem.assert_near(jax.tree.map(lambda x, i=i: x[i], out), expected, rtol=1e-5)


def test_no_scaled_gradient_is_kept():
    """It is dead code: the step has no temporary of a leaf, and has one behind Optax's clip."""
    p = jnp.zeros((1024, 1024))
    sizes = []
    for clip in CLIPS:
        tx = optax.chain(clip(1.0), lion8bit(1e-3, weight_decay=0.1))
        step = jax.jit(lambda p, g, s, tx=tx: apply_fused(tx, p, g, s), donate_argnums=(0, 2))
        compiled = step.lower(p, p, tx.init(p)).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[0] < 0.1 * p.size and sizes[1] >= p.nbytes
