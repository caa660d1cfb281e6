"""One step of every optimizer, from a lived-in state, is what the float64 oracles say.

Three steps of the library on gradients of many scales make a state; the fourth is judged (see
`step_judge`). Hyperparameters are dyadic so that float32 holds them exactly; one case has the
defaults. Weight decay is never zero and spares one leaf, so coupled and decoupled decay differ.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lamblion
from optax_lamblion import StateOptions, apply_fused, clip_by_global_norm
from tests import oracles
from tests.kernels.interpreted import interpreted
from tests.kernels.step_judge import (
    Hyper,
    Observed,
    find_state,
    float64,
    judge_adam,
    judge_lion,
    sum_error,
)

LEAVES = {
    "odd_tail": (4097,),
    "rows": (9, 512),
    "undecayed_4d": (3, 5, 7, 64),
    "small": (33,),  # stays 32-bit
}
FEW = ("odd_tail", "undecayed_4d")  # enough for an option; compiling is what takes the time
LION = dict(learning_rate=2.0**-7, b1=0.875, b2=1 - 2.0**-6, weight_decay=0.25)
ADAM = dict(learning_rate=2.0**-7, b1=0.875, b2=1 - 2.0**-10, eps=2.0**-20, weight_decay=0.25)
# Gradients at flat positions, from the third step on, in some cases.
POISON = {3: np.nan, 300: np.inf, 301: -np.inf}
HUGE = {3: 1e30, 300: -1e25}  # finite, but their squares are not
# Dtypes of parameters and gradients, of all leaves or (mixed) leaf by leaf.
DTYPES = {
    "float32": dict.fromkeys(LEAVES, ("float32", "float32")),
    "bfloat16": dict.fromkeys(LEAVES, ("bfloat16", "bfloat16")),
    "mixed": {
        "odd_tail": ("float32", "bfloat16"),
        "rows": ("float16", "float16"),
        "undecayed_4d": ("bfloat16", "bfloat16"),
        "small": ("bfloat16", "float32"),
    },
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One optimizer, as called and as judged."""

    name: str
    arguments: dict[str, Any]
    hyper: Hyper
    leaves: tuple[str, ...]
    dtypes: dict[str, tuple[str, str]]
    poison: dict[int, float]
    zero: bool
    scaled: dict[str, float]
    """`max_norm` and `grad_scale` of a step by `apply_fused`; without one, it is by `update`."""

    @property
    def optimizer(self):
        return self.name.split("-")[0]


def case(
    name, *, codec="power", block_size=256, leaves=FEW, dtypes="float32", poison=None,
    zero=False, judged=None, scaled=None, **extra,
):  # fmt: skip
    """A case of the optimizer that `name` starts with; `judged` overrides what the oracle uses."""
    base = dict(LION if name.startswith("lion") else ADAM) | extra
    numbers = {k: v for k, v in base.items() if k not in ("percentile_clipping", "block_wise")}
    numbers |= dict(percentile=base.get("percentile_clipping"), codec=codec)
    numbers["block_size"] = block_size if base.get("block_wise", True) else None
    options = StateOptions(block_size=block_size, codec=codec)
    hyper = Hyper(**(numbers | (judged or {})), ratio=name.startswith("lamb"))
    arguments = base | dict(options=options)
    return Case(
        name, arguments, hyper, tuple(leaves), DTYPES[dtypes], poison or {}, zero, scaled or {}
    )


GRID = [
    case(f"{optimizer}-{codec}-{dtypes}", codec=codec, leaves=LEAVES, dtypes=dtypes)
    for optimizer in ("lion8bit", "lamb8bit", "adamw8bit", "lion32bit", "lamb32bit", "adamw32bit")
    for codec in (("power", "dynamic", "linear") if "8bit" in optimizer else ("power",))
    for dtypes in (DTYPES if codec == "power" else ("float32", "mixed"))
]
DEFAULTS = dict(learning_rate=1e-3, weight_decay=0.01)
OPTIONS = [
    case("lion8bit-defaults", **DEFAULTS | dict(b1=0.9, b2=0.99)),
    case("lamb8bit-defaults", **DEFAULTS | dict(b1=0.9, b2=0.999, eps=1e-8)),
    case("lamb32bit-defaults", **DEFAULTS | dict(b1=0.9, b2=0.999, eps=1e-8)),
    case("adamw8bit-defaults", **DEFAULTS | dict(b1=0.9, b2=0.999, eps=1e-8)),
    case("adamw32bit-defaults", **DEFAULTS | dict(b1=0.9, b2=0.999, eps=1e-8)),
    case("lion8bit-blocks_of_64", block_size=64),
    case("lion8bit-blocks_of_4096", block_size=4096),
    case("lion8bit-whole_tensor", block_wise=False),
    case("lamb8bit-whole_tensor", block_wise=False),
    case("lamb8bit-no_bias_correction", bias_correction=False),
    case("lamb8bit-amsgrad", amsgrad=True),
    case("lamb8bit-amsgrad_dynamic", amsgrad=True, codec="dynamic"),
    case("lamb32bit-amsgrad", amsgrad=True),
    case("lamb8bit-l2_decay", adam_w_mode=False),
    case("adamw8bit-amsgrad", amsgrad=True),
    case("adamw8bit-l2_decay", adam_w_mode=False),
    case("adamw8bit-no_bias_correction", bias_correction=False),
    case("adamw8bit-percentile", percentile_clipping=5),
    case("adamw8bit-non_finite", poison=POISON),
    case("adamw8bit-huge", poison=HUGE),
    case("lamb32bit-l2_decay", adam_w_mode=False),
    case("lamb8bit-max_unorm", max_unorm=0.5),
    case("lamb32bit-max_unorm", max_unorm=0.5),
    case("lamb32bit-max_unorm_that_is_no_cap", max_unorm=50.0),
    case("lion8bit-slow_momentum", b2=1 - 2.0**-12),
    case("lamb8bit-trust_clip", trust_clip=(0.75, 0.8)),
    case("lamb8bit-zero_parameters", zero=True),
    case("lamb32bit-zero_parameters", zero=True),
    case("lamb8bit-zero_parameters_max_unorm", zero=True, max_unorm=0.5),
    case("lion8bit-percentile", percentile_clipping=5),
    case("lamb8bit-percentile", percentile_clipping=5),
    case("lamb8bit-percentile_l2_decay", percentile_clipping=5, adam_w_mode=False),
    case("lion32bit-percentile", percentile_clipping=5),
    case("lion8bit-non_finite", poison=POISON),
    case("lion8bit-non_finite_percentile", poison=POISON, percentile_clipping=5),
    case("lamb8bit-non_finite", poison=POISON),
    case("lamb8bit-non_finite_dynamic", poison=POISON, codec="dynamic"),
    case("lion8bit-huge", poison=HUGE),
    case("lamb8bit-huge", poison=HUGE),
    case("lamb32bit-huge", poison=HUGE),
    # A global norm is about 5, and the clip about a tenth.
    case("lion8bit-clipped", scaled=dict(max_norm=0.5)),
    case("lamb8bit-clipped", scaled=dict(max_norm=0.5)),
    case("adamw8bit-clipped", scaled=dict(max_norm=0.5, grad_scale=0.75)),
    case("lion32bit-clipped", scaled=dict(max_norm=0.5, grad_scale=0.75)),
    case("lamb32bit-clipped", scaled=dict(max_norm=0.5)),
    case("lion8bit-clipped_mixed", scaled=dict(max_norm=0.5), leaves=LEAVES, dtypes="mixed"),
    case("lamb8bit-clipped_bfloat16", scaled=dict(max_norm=0.5), dtypes="bfloat16"),
    case("lion8bit-clipped_twice", scaled=dict(max_norm=0.5), percentile_clipping=5),
    case("lamb8bit-clipped_twice", scaled=dict(max_norm=0.5, grad_scale=3), percentile_clipping=5),
    case("lion8bit-scaled_non_finite", scaled=dict(grad_scale=2.0**-15), poison=POISON),
    case("lamb8bit-scaled_non_finite", scaled=dict(grad_scale=0.3), poison=POISON),
    case("adamw8bit-scaled_huge", scaled=dict(grad_scale=0.3), poison=HUGE),
    case("lion32bit-non_finite", poison=POISON),
    case("lamb32bit-non_finite", poison=POISON),
    case(
        "lion8bit-schedules",
        learning_rate=lambda count: 2.0**-7 / (1 + count.astype(jnp.float32)),
        weight_decay=lambda count: 0.25 * (1 + count.astype(jnp.float32)),
        judged=dict(learning_rate=2.0**-9, weight_decay=1.0),
    ),
    case(
        "lamb8bit-schedules",
        learning_rate=lambda count: 2.0**-7 / (1 + count.astype(jnp.float32)),
        weight_decay=lambda count: 0.25 * (1 + count.astype(jnp.float32)),
        judged=dict(learning_rate=2.0**-9, weight_decay=1.0),
    ),
]


CASES = {case.name: case for case in GRID + OPTIONS}
# The kernels take cube roots and reciprocals through logarithms; `kernel_ladders.for_kernel` and
# `mosaic_bodies._divide` say what that costs.
KERNEL = dict(tie=1e-3, operation=1e-6)
# What kernels have no say in is left out: 32-bit state, large blocks, the order of steps.
KERNEL_CASES = [
    name
    for name, case in CASES.items()
    if name.startswith(("lion8bit", "lamb8bit", "adamw8bit"))
    and case.hyper.block_size == 256
    and not name.endswith(("schedules", "trust_clip", "no_bias_correction", "zero_parameters"))
] + ["lion8bit-blocks_of_64"]
STEPS = [(name, leaf, "xla") for name, case in CASES.items() for leaf in case.leaves]
STEPS += [(name, leaf, "kernel") for name in KERNEL_CASES for leaf in CASES[name].leaves]


def parameters(case):
    rng = np.random.default_rng(0)
    return {
        leaf: jnp.asarray(rng.normal(size=LEAVES[leaf]) * (not case.zero), case.dtypes[leaf][0])
        for leaf in case.leaves
    }


def gradients(case, t):
    rng = np.random.default_rng(t)
    grads = {}
    for leaf in case.leaves:
        shape = LEAVES[leaf]
        g = rng.normal(size=shape) * rng.lognormal(size=shape) * 2.0**-6
        g.ravel()[:3] = 0  # elements that never had a gradient
        if leaf == "rows":
            g[4, :256] = 0  # and a block of them
        if t > 2:
            at = [i for i in case.poison if i < g.size]
            g.ravel()[at] = [case.poison[i] for i in at]
        grads[leaf] = jnp.asarray(g, case.dtypes[leaf][1])
    return grads


def _fields(state, leaf):
    """The state's slots of one leaf, by field name."""
    trees = {k: v for k, v in state._asdict().items() if isinstance(v, dict) and leaf in v}
    return {k: np.asarray(v[leaf]) for k, v in trees.items()}


@functools.cache
def observe(name, implementation="xla"):
    """The fourth step of a case: what every leaf's judge needs to know."""
    with interpreted() if implementation == "kernel" else contextlib.nullcontext():
        return _observe(CASES[name])


def _observe(case):
    mask = {leaf: leaf != "undecayed_4d" for leaf in case.leaves}
    tx = getattr(optax_lamblion, case.optimizer)(**case.arguments, mask=mask)
    if max_norm := case.scaled.get("max_norm"):
        tx = optax.chain(clip_by_global_norm(max_norm), tx)
    params = parameters(case)
    state = tx.init(params)
    update = jax.jit(tx.update)
    scale = case.scaled.get("grad_scale")
    fused = jax.jit(lambda p, g, state: apply_fused(tx, p, g, state, grad_scale=scale))
    for t in range(1, 5):
        before, grads = find_state(state), gradients(case, t)
        if case.scaled:
            updates, state = fused(params, grads, state)
        else:
            updates, state = update(grads, state, params)
        if t < 4 and case.scaled:
            params = updates
        elif t < 4 and not case.zero:
            # `apply_updates`, which strict promotion refuses for mixed dtypes.
            params = {k: (p + updates[k].astype(p.dtype)) for k, p in params.items()}
    after = find_state(state)
    assert int(before.count) == 3 and int(after.count) == 4
    return {
        leaf: Observed(
            4,
            leaf,
            grads[leaf],
            params[leaf],
            updates[leaf],
            _fields(before, leaf),
            _fields(after, leaf),
            *scale_of(grads, **case.scaled),
            bool(case.scaled),
        )
        for leaf in case.leaves
    }


def scale_of(grads, max_norm=None, grad_scale=1.0):
    """What gradients are to be multiplied by, and how far that is off in float32."""
    if max_norm is None:
        return grad_scale, 0.0
    sizes = [g.size for g in grads.values()]
    norm = np.linalg.norm([np.linalg.norm(grad_scale * float64(g)) for g in grads.values()])
    assert norm > 2 * max_norm
    return grad_scale * max_norm / norm, sum_error(sum(sizes))


@pytest.mark.parametrize("name, leaf, by", STEPS, ids=["-".join(step) for step in STEPS])
def test_a_step_is_what_the_oracle_says(name, leaf, by):
    case, observed = CASES[name], observe(name, by)[leaf]
    eight_bits = "8bit" in case.optimizer and leaf != "small"
    assert observed.after["mu"].dtype == (np.uint8 if eight_bits else np.float32)
    hyper = dataclasses.replace(case.hyper, **(KERNEL if by == "kernel" else {}))
    if leaf == "undecayed_4d":
        hyper = dataclasses.replace(hyper, weight_decay=0.0)
    (judge_lion if case.optimizer.startswith("lion") else judge_adam)(observed, hyper)


@pytest.mark.parametrize("name", ["lion8bit-power-float32", "lamb8bit-power-float32"])
def test_the_judge_notices_small_mistakes(name):
    """A judge that accepts everything would be no judge."""
    observed, hyper = observe(name)["odd_tail"], CASES[name].hyper
    judge = judge_lion if name.startswith("lion") else judge_adam
    judge(observed, hyper)
    codes, absmax = observed.after["mu"], observed.after["mu_absmax"]
    slots = dict(mu=codes + np.uint8(1)), dict(mu=np.zeros_like(codes))
    slots += (dict(mu_absmax=absmax * np.float32(1.0001)),)
    mistakes = [dataclasses.replace(observed, after=observed.after | slot) for slot in slots]
    mistakes += [dataclasses.replace(observed, update=observed.update * f) for f in (1.0002, 0)]
    for mistake in mistakes:
        with pytest.raises(AssertionError):
            judge(mistake, hyper)
    for field, value in dict(weight_decay=0.2501, b1=0.876, b2=0.98, learning_rate=0.0079).items():
        with pytest.raises(AssertionError):
            judge(observed, dataclasses.replace(hyper, **{field: value}))


@pytest.mark.parametrize("optimizer", ["lion8bit", "lamb8bit"])
def test_non_finite_gradients_leave_no_trace(optimizer):
    observed = observe(f"{optimizer}-non_finite")["odd_tail"]
    for field, value in observed.after.items():
        assert np.isfinite(value).all(), field
    update = np.asarray(observed.update)
    assert np.isfinite(update).all()
    assert not update[list(POISON)].any()
    # Two poisoned steps in a row, and everybody else kept moving.
    assert (np.delete(update, list(POISON))[3:] != 0).mean() > 0.99


def test_every_leaf_block_and_step_is_rounded_in_its_own_way():
    g = jnp.tile(jnp.asarray(np.random.default_rng(7).lognormal(size=256), jnp.float32), 64)
    grads, params = {"a": g, "b": g}, {"a": jnp.ones_like(g), "b": jnp.ones_like(g)}
    tx = optax_lamblion.lamb8bit(2.0**-7, b2=0.0)  # every step stores the same value, g**2
    update = jax.jit(tx.update)
    state = tx.init(params)
    first, again = (update(grads, state, params)[1] for _ in range(2))
    second = update(grads, first, params)[1]
    first, again, second = (find_state(state) for state in (first, again, second))
    np.testing.assert_array_equal(first.nu["a"], again.nu["a"])
    blocks = np.asarray(first.nu["a"]).reshape(64, 256)
    # A value is rounded up in a share f of the blocks; any two of them differ in a share of about
    # 2 f (1 - f), whose mean over f is 1/3.
    pairs = [(first.nu["a"], first.nu["b"]), (second.nu["a"], second.nu["b"])]
    pairs += [(first.nu["a"], second.nu["a"]), (blocks[1:], blocks[:-1])]
    for one, other in pairs:
        assert 0.2 < np.mean(np.asarray(one) != np.asarray(other)) < 0.8
    # All blocks of a value together take the share of it that lies between its levels.
    y = np.asarray(g[:256], np.float64) ** 2 / float(first.nu_absmax["a"].max())
    table = oracles.levels("power", False)
    low, high = (table[code].astype(float) for code in oracles.neighbours(y, "power", False))
    f = np.divide(y - low, high - low, out=np.zeros_like(y), where=high > low)
    up = (table[blocks] > low + 0.5 * (high - low)).mean(axis=0)
    # 64 numbers of a Weyl sequence have a discrepancy below 0.05.
    assert np.abs(up - f).max() < 0.05
