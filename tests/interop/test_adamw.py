"""Checkpoints of bitsandbytes' AdamW and Adam, which `adamw` and its kind go on with.

No file of these is committed: they are made here, in every layout, by the documented steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion import (
    AdamState,
    StateOptions,
    adamw8bit,
    adamw32bit,
    from_bitsandbytes,
    paged_adamw8bit,
    state_report,
)
from tests import oracles
from tests.interop import cuda_steps, loading, problem

ADAMW = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
ADAM = ADAMW | {"weight_decay": 0.0}
SIGNED, UNSIGNED = oracles.bitsandbytes_map(True), oracles.bitsandbytes_map(False)
NAMES = ["matrix", "ragged", "small"]

# Settings, elements per scale (None for 32 bits, 0 for one scale per tensor), and whether slots are
# nested, as they are since 0.49.2.
LAYOUTS = {
    "AdamW8bit": (ADAMW, 256, True),
    "AdamW8bit, flat": (ADAMW, 256, False),
    "AdamW8bit, blocks of 2048": (ADAMW, 2048, False),
    "AdamW8bit, one scale": (ADAMW, 0, False),
    "AdamW32bit": (ADAMW, None, True),
    "Adam8bit": (ADAM, 256, True),
    "Adam32bit": (ADAM, None, False),
}


def step(p, g, slots, block_size, settings):
    """One step of theirs; tensors of fewer than 4096 elements are in 32 bits."""
    if block_size is None or p.size < 4096:
        return cuda_steps.adam32(p, g, slots, **settings)
    tables = SIGNED, UNSIGNED
    return cuda_steps.adam8(p, g, slots, tables=tables, block_size=block_size, **settings)


def slot(i, stored, block_size):
    """A slot as it is saved."""
    if stored.codes is None:
        return {f"state{i}": stored.value.astype(np.float32)}
    scales = stored.absmax.astype(np.float32)
    named = {f"absmax{i}": scales} if block_size else {f"max{i}": scales, f"new_max{i}": scales / 2}
    return {f"state{i}": stored.codes, f"qmap{i}": (SIGNED, UNSIGNED)[i - 1]} | named


def checkpoint(layout):
    """What `optimizer.state_dict()` returns after some steps, and the parameters then."""
    settings, block_size, nested = LAYOUTS[layout]
    state, params = {}, {}
    for number, name in enumerate(NAMES):
        p = problem.params()[name]
        slots = {"state1": np.zeros(p.shape), "state2": np.zeros(p.shape)}
        for t in range(problem.STEPS):
            before = cuda_steps.decode({"step": t, **slots}, p.shape)
            done = step(p, problem.gradient(name, t), before, block_size, settings)
            slots = slot(1, done.m, block_size) | slot(2, done.v, block_size)
            p = done.p
        entry = {"__bnb_optimizer_quant_state__": slots} if nested else slots
        state[number] = {"step": problem.STEPS, **entry}
        params[name] = p.astype(np.float32)
    group = settings | {"alpha": 0.0, "t_alpha": None, "t_beta3": None, "params": [*state]}
    return {"state": state, "param_groups": [group]}, params


def ours(layout, factory=None, **options):
    """The optimizer that goes on, and stores as they do."""
    settings, block_size, _ = LAYOUTS[layout]
    b1, b2 = settings["betas"]
    given = dict(learning_rate=settings["lr"], b1=b1, b2=b2, eps=settings["eps"])
    given |= dict(weight_decay=settings["weight_decay"])
    if block_size is None:
        return adamw32bit(**given)
    options |= dict(codec="dynamic", **({"block_size": block_size} if block_size else {}))
    options = StateOptions(**options)
    return (factory or adamw8bit)(**given, options=options, block_wise=bool(block_size))


def continued(layout, tx=None):
    """Their checkpoint, parameters, gradients, and our state before and after one more step."""
    theirs, params = checkpoint(layout)
    tx = ours(layout) if tx is None else tx
    params = {name: jnp.asarray(p) for name, p in params.items()}
    grads = {name: jnp.asarray(problem.gradient(name, problem.STEPS)) for name in NAMES}
    state = from_bitsandbytes(theirs, params, tx, names=NAMES)
    updates, after = jax.jit(tx.update)(grads, state, params)
    return theirs, params, updates, state, after


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_and_counts_are_taken_over(layout):
    theirs, _, _, state, _ = continued(layout)
    assert isinstance(state, AdamState) and state.count == problem.STEPS
    for number, name in enumerate(NAMES):
        saved = loading.slots(theirs, number)
        for i, field in ((1, "mu"), (2, "nu")):
            x, expected = getattr(state, field)[name], saved[f"state{i}"]
            if expected.dtype == np.uint8:
                expected = loading.our_codes(expected, signed=i == 1)
                scales = saved.get(f"absmax{i}", saved.get(f"max{i}"))
                assert loading.same_bits(getattr(state, f"{field}_absmax")[name], scales)
            assert loading.same_bits(x, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_more_step_is_that_of_cuda(layout):
    settings, block_size, _ = LAYOUTS[layout]
    theirs, params, updates, _, after = continued(layout)
    for number, name in enumerate(NAMES):
        p, g = np.asarray(params[name], np.float64), problem.gradient(name, problem.STEPS)
        before = cuda_steps.decode(theirs["state"][number], p.shape)
        judge = step(p, g, before, block_size, settings | {"dtype": None})
        stored = {}
        for field, slot, signed in (("mu", judge.m, True), ("nu", judge.v, False)):
            x = np.asarray(getattr(after, field)[name])
            if slot.codes is None:
                # A sum of two products, each factor rounded.
                largest = np.abs(slot.exact).max()
                np.testing.assert_allclose(x, slot.exact, rtol=3e-7, atol=2.0**-23 * largest)
                stored[field] = slot.exact
                continue
            absmax = np.asarray(getattr(after, f"{field}_absmax")[name]).ravel()
            np.testing.assert_allclose(absmax, slot.absmax, rtol=4e-7, atol=1e-12)
            # What theirs rounds to zero, and is not zero, gets the next code here if a step divides
            # by its root. In a block of zeros any code means zero.
            theirs_here = slot.codes + ((slot.codes == 0) & (slot.exact > 0) & (field == "nu"))
            scale = oracles.scale_of(slot.absmax, x.shape, block_size or None)
            apart = np.abs(oracles.ranks(x, "dynamic", signed) - theirs_here.astype(int))
            apart = apart[scale > 0]
            assert apart.max() <= 1 and np.mean(apart) < 1e-3  # ties, which float32 decides
            stored[field] = oracles.decode(x, absmax, block_size or None, "dynamic", signed)
        expected = moved(p, stored["mu"], stored["nu"], settings)
        # Up to eps, a direction has the error of its roots and quotients: a few units.
        np.testing.assert_allclose(
            updates[name], expected, rtol=3e-6, atol=2.0**-22 * np.abs(expected).max()
        )
        # Theirs multiplies by the decay after the step, and so decays the step as well.
        exact = moved(p, judge.m.exact, judge.v.exact, settings)
        slack = settings["lr"] * settings["weight_decay"] * np.abs(exact).max()
        np.testing.assert_allclose(judge.p - p, exact, rtol=1e-6, atol=2 * slack + 1e-12)
        # Theirs goes by moments before they are encoded, ours by those that are stored: 0.01 to 0.2
        # of the way apart, most of it where `v` is below the first level above zero.
        off = np.linalg.norm(updates[name] - (judge.p - p)) / np.linalg.norm(judge.p - p)
        assert off < (1e-3 if judge.m.codes is None else 0.25)


def moved(p, m, v, settings):
    """The update of CUDA's formula, from these moments."""
    (b1, b2), t = settings["betas"], problem.STEPS + 1
    u = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + settings["eps"])
    return -settings["lr"] * (u + settings["weight_decay"] * p)


def test_state_of_paged_adamw_goes_to_the_host():
    layout = "AdamW8bit"
    tx = ours(layout, paged_adamw8bit, page_min_size=4096)
    _, _, updates, state, after = continued(layout, tx)
    _, _, expected, _, resident = continued(layout)
    assert "pinned_host" in state_report(state).by_memory_kind
    assert jax.tree.all(jax.tree.map(loading.same_bits, after, resident))
    assert jax.tree.all(jax.tree.map(loading.same_bits, updates, expected))


@pytest.mark.parametrize("name", ["lamb8bit", "lamb32bit", "lamb8bit_tensorwise"])
def test_a_file_of_lamb_may_go_on_as_adamw(name):
    block = loading.block_size(name)
    factory = adamw8bit if "8bit" in name else adamw32bit
    options = StateOptions(codec="dynamic") if "8bit" in name else None
    _, state = loading.imported(name, factory(options=options, block_wise=block is not None))
    _, as_lamb = loading.imported(name)
    assert isinstance(state, AdamState)
    assert jax.tree.all(jax.tree.map(loading.same_bits, state._asdict(), as_lamb._asdict()))
