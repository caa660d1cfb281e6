"""How bitsandbytes' CPU build steps, against `cuda_steps`: where both agree, and where they do not.

The CPU build is the only one that runs without a GPU, so it vouches for the equations there. Each
known difference has a test, because the committed checkpoints are from this build.
"""

import bitsandbytes as bnb
import numpy as np
import pytest
import torch

from tests.interop import cuda_steps, problem
from tests.peers.library import arrays


def steps(kind, name, count, **hyperparameters):
    """For each step: parameter and slots before, parameter and slots after, settings."""
    p = torch.nn.Parameter(torch.from_numpy(problem.params()[name]))
    optimizer = getattr(bnb.optim, kind)([p], **hyperparameters)
    for step in range(count):
        before = p.detach().numpy().copy(), entry_of(optimizer)
        p.grad = torch.from_numpy(problem.gradient(name, step))
        optimizer.step()
        yield step, *before, p.detach().numpy().copy(), entry_of(optimizer)


def entry_of(optimizer):
    """The slots of the only parameter, which no later step changes; None before the first."""
    entry = arrays.as_arrays(optimizer.state_dict())["state"].get(0, {})
    entry |= entry.pop(arrays.QUANT_STATE, {})
    return {key: np.copy(x) for key, x in entry.items()} or None


def slots_before(entry, name, lamb=False):
    """What the oracle goes on from; zeros before the first step."""
    shape = problem.SHAPES[name]
    if entry is None:
        zeros = np.zeros(shape)
        return cuda_steps.Slots(0, zeros, zeros if lamb else None, None)
    return cuda_steps.decode(entry, shape)


def close(actual, expected, terms):
    """Within a few float32 roundings of the terms that an element is the sum of."""
    return np.abs(actual - expected) <= 4 * 2.0**-24 * terms


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["small", "narrow", "matrix"])
def test_32bit_lion_is_that_of_cuda(name, weight_decay):
    h = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": weight_decay}
    for step, p, entry, new_p, new_entry in steps("Lion", name, 4, **h):
        g = problem.gradient(name, step)
        slots = slots_before(entry, name)
        expected = cuda_steps.lion32(p, g, slots, **h)
        terms = np.abs(slots.m) + np.abs(g)
        assert close(new_entry["state1"], expected.m.value, terms).all()
        decided = np.abs(expected.decisive) > 4 * 2.0**-24 * terms
        assert decided.mean() > 0.9 and not expected.decisive[~decided].any()
        assert close(new_p, expected.p, 1 + np.abs(p))[decided].all()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["matrix", "ragged", "transposed"])
def test_8bit_lion_is_that_of_cuda_but_for_where_codes_change(name, weight_decay):
    h = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": weight_decay}
    for step, p, entry, new_p, new_entry in steps("Lion8bit", name, 4, **h):
        table = new_entry["qmap1"].astype(np.float64)
        slots = slots_before(entry, name)
        g = problem.gradient(name, step)
        expected = cuda_steps.lion8(p, g, slots, table=table, **h)
        np.testing.assert_allclose(new_entry["absmax1"], expected.m.absmax, rtol=4 * 2.0**-24)
        codes = new_entry["state1"]
        assert cuda_steps.allowed(
            codes, expected.m, table, 256, sign_rule=False, slack=cuda_steps.CPU_SLACK
        ).all()
        # The rest are small values: a tenth is below 4e-5 of its scale.
        assert (codes == expected.m.codes).mean() > 0.88
        decided = np.abs(expected.decisive) > 4 * 2.0**-24 * (np.abs(slots.m) + np.abs(g))
        assert close(new_p, expected.p, 1 + np.abs(p))[decided].all()


def test_small_momentum_is_coarser_on_the_cpu():
    """A zero becomes the code next to the smallest levels, with 2.1e-5 of the scale."""
    *_, (_, _, _, _, entry) = steps("Lion8bit", "matrix", 1, lr=1e-3)
    g = problem.gradient("matrix", 0)
    zero_in_a_block_that_is_not = (g == 0) & (np.repeat(entry["absmax1"], 256) > 0).reshape(g.shape)
    assert set(entry["state1"][zero_in_a_block_that_is_not]) == {131}
    assert entry["qmap1"][131] == pytest.approx(2.125e-5)


def test_a_block_of_zeros_has_code_zero_on_the_cpu():
    """And 255 on a GPU. Its scale is 0."""
    *_, (_, _, _, _, entry) = steps("Lion8bit", "matrix", 2, lr=1e-3)
    assert entry["absmax1"][1] == 0
    assert not entry["state1"].ravel()[problem.ZERO_BLOCK].any()
    stored = cuda_steps.quantize(np.zeros(256), entry["qmap1"], 256, signed=True)
    assert set(stored.codes) == {255}


@pytest.mark.parametrize("name", ["small", "narrow"])
def test_32bit_lamb_without_cap_and_decay_is_that_of_cuda(name):
    h = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    for step, p, entry, new_p, new_entry in steps("LAMB", name, 4, max_unorm=1e9, **h):
        g = problem.gradient(name, step)
        slots = slots_before(entry, name, lamb=True)
        expected = cuda_steps.lamb32(p, g, slots, max_unorm=0.0, **h)
        assert close(new_entry["state1"], expected.m.value, np.abs(slots.m) + np.abs(g)).all()
        assert close(new_entry["state2"], expected.v.value, slots.v + g.astype(float) ** 2).all()
        # A root and a division, each of a few roundings, of terms that may have cancelled.
        rounding = 1 + (np.abs(slots.m) + np.abs(g)) / (np.sqrt(expected.v.value) + 1e-8)
        assert close(new_p, expected.p, np.abs(p) + h["lr"] * 4 * rounding).all()


def test_the_cap_of_the_cpu_measures_another_norm():
    """Without bias correction: the first step is 0.316 of the cap, sqrt(1 - b2) / (1 - b1)."""
    h = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    # The cap is far below the update's norm of about 1 per element.
    *_, (_, p, _, new_p, _) = steps("LAMB", "small", 1, max_unorm=0.1, **h)
    g = problem.gradient("small", 0)
    expected = cuda_steps.lamb32(p, g, slots_before(None, "small", lamb=True), max_unorm=0.1, **h)
    cap = 0.1 * h["lr"] * np.linalg.norm(p)
    assert np.linalg.norm(expected.p - p) == pytest.approx(cap, rel=1e-4)
    assert np.linalg.norm(new_p - p) == pytest.approx(cap * 0.001**0.5 / 0.1, rel=1e-3)


def test_decay_comes_first_on_the_cpu_and_last_on_a_gpu():
    h = {"lr": 0.5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.5}
    *_, (_, p, _, new_p, _) = steps("LAMB", "small", 1, max_unorm=1e9, **h)
    slots = slots_before(None, "small", lamb=True)
    g = problem.gradient("small", 0)
    last = cuda_steps.lamb32(p, g, slots, max_unorm=0.0, **h).p
    update = cuda_steps.lamb32(p, g, slots, max_unorm=0.0, **{**h, "weight_decay": 0.0}).p - p
    np.testing.assert_allclose(last, (p + update) * 0.75, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(new_p, p * 0.75 + update, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["matrix", "ragged"])
def test_slots_of_8bit_lamb_are_encoded_alike(name):
    """The step itself is Adam's on the CPU, and not to be had on a GPU."""
    h = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    for step, p, entry, _, new_entry in steps("LAMB8bit", name, 4, **h):
        tables = [new_entry[f"qmap{i}"].astype(np.float64) for i in (1, 2)]
        expected = cuda_steps.lamb8(
            p,
            problem.gradient(name, step),
            slots_before(entry, name, lamb=True),
            tables=tables,
            **h,
        )
        for i, stored in ((1, expected.m), (2, expected.v)):
            np.testing.assert_allclose(new_entry[f"absmax{i}"], stored.absmax, rtol=8 * 2.0**-24)
            assert cuda_steps.allowed(
                new_entry[f"state{i}"],
                stored,
                tables[i - 1],
                256,
                sign_rule=False,
                slack=cuda_steps.CPU_SLACK,
            ).all()


def test_the_dtype_of_parameters_does_not_change_the_state():
    """Gradients here are exact in bfloat16."""
    states = []
    for dtype in (torch.float32, torch.bfloat16):
        p = torch.nn.Parameter(torch.from_numpy(problem.params()["ragged"]).to(dtype))
        optimizer = bnb.optim.Lion8bit([p], lr=1e-3, weight_decay=0.1)
        for step in range(problem.STEPS):
            p.grad = torch.from_numpy(problem.gradient("ragged", step)).to(dtype)
            optimizer.step()
        states.append(entry_of(optimizer))
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][key])
