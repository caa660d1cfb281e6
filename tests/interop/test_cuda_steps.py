"""The judge of imported states is judged: by hand, by another judge, and by real checkpoints."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from tests import oracles
from tests.interop import cuda_steps, problem
from tests.interop.cuda_steps import Slots

CHECKPOINTS = pathlib.Path(__file__).parent / "checkpoints"
SIGNED = oracles.bitsandbytes_map(True).astype(np.float64)
UNSIGNED = oracles.bitsandbytes_map(False).astype(np.float64)
LION = {"lr": 1e-3, "betas": (0.9, 0.99)}
LAMB = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}


def values(size=5000, seed=0):
    """Of both signs and many scales, up to 1."""
    rng = np.random.default_rng(seed)
    return rng.choice([-1, 1], size) * 10.0 ** rng.uniform(-8, 0, size)


def slots(shape, seed=1):
    """Slots as after some steps."""
    rng = np.random.default_rng(seed)
    return Slots(6, rng.normal(size=shape), rng.uniform(size=shape), None)


# Codes


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_the_other_judge(signed):
    y = values() if signed else np.abs(values())
    table = SIGNED if signed else UNSIGNED
    codes = cuda_steps.nearest_codes(y, table)
    if signed:
        codes = cuda_steps.with_sign_rule(codes, y, table)
    expected, ties = oracles.nearest(y, "dynamic", signed)
    assert not ties.any()
    # The other judge has the codes of this package, of which every level has one.
    np.testing.assert_array_equal(table[codes], oracles.levels("dynamic", signed)[expected])


def test_every_level_keeps_its_code():
    for table in (SIGNED, UNSIGNED):
        np.testing.assert_array_equal(cuda_steps.nearest_codes(table, table), np.arange(256))


def test_the_sign_rule_keeps_small_negative_values_from_being_zero():
    y = np.array([1e-9, -1e-9, 0.0, -5e-7, 0.5])
    codes = cuda_steps.with_sign_rule(cuda_steps.nearest_codes(y, SIGNED), y, SIGNED)
    np.testing.assert_array_equal(codes[:4], [127, 126, 127, 126])
    assert SIGNED[codes[4]] > 0


def test_a_block_of_zeros_has_the_codes_of_a_gpu_and_is_zero():
    for signed, table, code in ((True, SIGNED, 255), (False, UNSIGNED, 0)):
        stored = cuda_steps.quantize(np.zeros(300), table, 256, signed)
        assert set(stored.codes) == {code}
        assert not stored.absmax.any() and not stored.value.any()


@pytest.mark.parametrize(("block_size", "scales"), [(256, 17), (2048, 3), (0, 1)])
def test_blocks_are_of_the_flat_tensor_and_the_last_is_short(block_size, scales):
    x = values(4097)
    stored = cuda_steps.quantize(x, SIGNED, block_size, True)
    assert len(stored.absmax) == scales
    assert stored.absmax[-1] == np.abs(x[-1:] if block_size else x).max()


def test_a_positive_maximum_is_exact_and_a_negative_one_shrinks():
    """The map has 1 and not -1."""
    assert cuda_steps.quantize(np.array([3.0, 1.0]), SIGNED, 256, True).value[0] == 3.0
    negative = cuda_steps.quantize(np.array([-3.0, 1.0]), SIGNED, 256, True).value[0]
    assert negative == pytest.approx(-3.0 * 0.99296875)


def test_codes_are_allowed_only_where_float32_could_have_them():
    stored = cuda_steps.quantize(values(), SIGNED, 256, True)
    judge = {"stored": stored, "table": SIGNED, "block_size": 256, "sign_rule": True}
    assert cuda_steps.allowed(stored.codes, **judge).all()
    # 2e-6 of the scale is more than a gap only among the smallest levels.
    large = np.abs(stored.exact) > 1e-3 * np.repeat(stored.absmax, 256)[:5000]
    for other in (stored.codes + 1, stored.codes - 1):
        assert cuda_steps.allowed(other.astype(np.uint8), **judge)[large].mean() < 1e-2
    # Without slack, what the sign rule moved is told from what it did not.
    sharp = cuda_steps.quantize(np.array([1.0, -1e-9]), SIGNED, 256, True)
    judge |= {"stored": sharp, "slack": 0.0}
    assert cuda_steps.allowed(np.array([255, 126]), **judge).all()
    assert not cuda_steps.allowed(np.array([255, 127]), **judge).all()


# Lion


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lion_is_that_of_the_other_judge(weight_decay):
    shape = (7, 99)
    rng = np.random.default_rng(0)
    p, g, before = rng.normal(size=shape), rng.normal(size=shape), slots(shape)
    other = oracles.lion_step(
        g, before.m, p, learning_rate=1e-3, b1=0.9, b2=0.99, weight_decay=weight_decay
    )
    for step in (
        cuda_steps.lion32(p, g, before, weight_decay=weight_decay, dtype=None, **LION),
        cuda_steps.lion8(p, g, before, table=SIGNED, weight_decay=weight_decay, dtype=None, **LION),
    ):
        np.testing.assert_allclose(step.p, p + other.update, rtol=1e-14)
        np.testing.assert_allclose(step.m.exact, other.mu, rtol=1e-14)


def test_coupled_decay_turns_signs_and_is_remembered():
    """p = 1, g = -0.05, decay 0.1: the gradient that counts is +0.05."""
    zero = Slots(0, np.zeros(1), None, None)
    p, g = np.ones(1), np.full(1, -0.05)
    coupled = cuda_steps.lion32(p, g, zero, weight_decay=0.1, coupled=True, dtype=None, **LION)
    decoupled = cuda_steps.lion32(p, g, zero, weight_decay=0.1, dtype=None, **LION)
    np.testing.assert_allclose([coupled.p, coupled.m.value], [[1 - 1e-3], [0.01 * 0.05]])
    np.testing.assert_allclose(
        [decoupled.p, decoupled.m.value], [[1 - 1e-4 + 1e-3], [0.01 * -0.05]]
    )


def test_nothing_and_nan_have_no_sign():
    before = Slots(3, np.zeros(2), None, None)
    step = cuda_steps.lion32(np.ones(2), np.array([0.0, np.nan]), before, **LION)
    np.testing.assert_array_equal(step.p, 1)


def test_a_bfloat16_parameter_stands_still_under_small_steps():
    """1 has no neighbour nearer than 0.0039 there."""
    before = Slots(0, np.zeros(1), None, None)
    h = {**LION, "lr": 1e-4, "weight_decay": 0.1}
    for step in (
        cuda_steps.lion32(np.ones(1), np.ones(1), before, dtype=ml_dtypes.bfloat16, **h),
        cuda_steps.lion8(
            np.ones(1), np.ones(1), before, table=SIGNED, dtype=ml_dtypes.bfloat16, **h
        ),
    ):
        assert step.p == 1
    assert cuda_steps.lion32(np.ones(1), np.ones(1), before, **h).p < 1


# LAMB


@pytest.mark.parametrize("max_unorm", [0.01, 1e6])
def test_lamb_without_decay_is_that_of_the_other_judge(max_unorm):
    shape = (7, 99)
    rng = np.random.default_rng(0)
    p, g, before = rng.normal(size=shape), rng.normal(size=shape), slots(shape)
    moments = oracles.lamb_moments(g, before.m, before.v, p, b1=0.9, b2=0.999)
    other = oracles.lamb_update(
        moments.mu / (1 - 0.9**7), moments.nu / (1 - 0.999**7), p, moments.skipped,
        learning_rate=1e-2, eps=1e-8, max_unorm=max_unorm,
    )  # fmt: skip
    step = cuda_steps.lamb32(p, g, before, max_unorm=max_unorm, dtype=None, **LAMB)
    assert (other.ratio < 1) == (max_unorm < 1)
    assert step.ratio == pytest.approx(other.ratio, rel=1e-12)
    np.testing.assert_allclose(step.p, p + other.update, rtol=1e-12)
    np.testing.assert_allclose(step.m.exact, moments.mu, rtol=1e-14)
    np.testing.assert_allclose(step.v.exact, moments.nu, rtol=1e-14)


def test_decay_comes_after_the_step_and_is_not_in_the_norm():
    p, g = np.full(4, 2.0), np.full(4, 3.0)
    zero = Slots(0, np.zeros(4), np.zeros(4), None)
    h = {**LAMB, "dtype": None, "weight_decay": 0.5}
    # The first step of Adam is the sign; its norm 2 is below that of p, 4.
    step = cuda_steps.lamb32(p, g, zero, **h)
    assert step.ratio == 1
    np.testing.assert_allclose(step.p, (2 - 0.01) * (1 - 0.005), rtol=1e-8)
    assert cuda_steps.lamb32(p, g, zero, max_unorm=0.1, **h).ratio == pytest.approx(0.2)


def test_a_parameter_of_zeros_never_moves():
    step = cuda_steps.lamb32(np.zeros(4), np.ones(4), slots(4), **LAMB)
    assert step.ratio == 0 and not step.p.any()
    assert cuda_steps.lamb32(np.zeros(4), np.ones(4), slots(4), max_unorm=0.0, **LAMB).p.all()


@pytest.mark.parametrize("block_size", [256, 0])
def test_8bit_lamb_is_32bit_lamb_whose_slots_are_encoded(block_size):
    rng = np.random.default_rng(0)
    p, g, before = rng.normal(size=600), rng.normal(size=600), slots(600)
    step = cuda_steps.lamb8(p, g, before, tables=(SIGNED, UNSIGNED), block_size=block_size, **LAMB)
    wide = cuda_steps.lamb32(p, g, before, **LAMB)
    np.testing.assert_array_equal(step.p, wide.p)
    for stored, exact, table, worst in (
        (step.m, wide.m.exact, SIGNED, 0.00703125),
        (step.v, wide.v.exact, UNSIGNED, 0.003515625),
    ):
        scale = oracles.scale_of(stored.absmax, (600,), block_size or None)
        # Half of the widest gap, and what float32 took from the levels beside it.
        assert (np.abs(stored.value - exact) <= (worst + 2.0**-23) * scale).all()
        np.testing.assert_array_equal(stored.value, table[stored.codes] * scale)


# Checkpoints


def entries(file):
    """Slots by name of parameter, read without the library."""
    names = json.loads((CHECKPOINTS / "checkpoints.json").read_text())[file]
    state = {}
    with safe_open(CHECKPOINTS / f"{file}.safetensors", framework="np") as content:
        for path in content.keys():
            _, number, *_, key = path.split(".")
            state.setdefault(names[int(number)], {})[key] = content.get_tensor(path)
    return state


def exact_moments(name, lamb):
    """Moments without 8 bits after each of the steps: pairs of `m` and `v`."""
    b1, b2 = (0.9, 0.999) if lamb else (0.99, 0.0)
    m = v = np.zeros(problem.SHAPES[name])
    for step in range(problem.STEPS):
        g = problem.gradient(name, step).astype(np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        yield m, v


def bound(exact, decay, block_size, worst):
    """How far stored moments may be from exact ones, if each rounding is off by `worst` of a scale.

    An error decays with its moment. A scale is at most that of the exact moment and of the error.
    """
    error = np.zeros(exact[0].shape)
    for x in exact:
        error = decay * error
        scale = oracles.block_absmax(np.abs(x) + error, block_size)
        error = error + worst * oracles.scale_of(scale, x.shape, block_size)
    return error


FILES = sorted(path.stem for path in CHECKPOINTS.glob("*.safetensors"))


@pytest.mark.parametrize("file", FILES)
def test_committed_slots_are_the_moments_of_the_gradients(file):
    lamb = file.startswith("lamb")
    for name, entry in entries(file).items():
        decoded = cuda_steps.decode(entry, problem.SHAPES[name])
        assert decoded.t == problem.STEPS
        moments = zip(*exact_moments(name, lamb), strict=True)
        kinds = [(decoded.m, 0.9 if lamb else 0.99, 0.00703125), (decoded.v, 0.999, 0.003515625)]
        for exact, (actual, decay, worst) in zip(moments, kinds[: 1 + lamb], strict=False):
            if decoded.block_size is None:  # at most three roundings of a term in a step
                allowed = 3 * problem.STEPS * 2.0**-24 * np.abs(exact).max(axis=0)
            else:
                worst += cuda_steps.CPU_SLACK
                allowed = bound(exact, decay, decoded.block_size or None, worst)
            right = np.abs(actual - exact[-1]) <= allowed
            if file == "lamb8bit_long_map" and actual is decoded.v:
                right |= _is_lost(exact[-1], actual, entry)
            assert right.all(), name
            assert np.abs(actual).max() > 0.05 * np.abs(exact[-1]).max()


def _is_lost(exact, actual, entry):
    """What the long map cannot hold: beyond the last level that it has a code for."""
    top = entry["qmap2"][255] * np.float64(entry["max2"][0])
    assert actual.max() == top
    return (exact > top) & (actual == top)


def test_committed_checkpoints_have_every_layout():
    def layouts_of(file):
        states = entries(file).items()
        return {cuda_steps.decode(x, problem.SHAPES[name]).block_size for name, x in states}

    layouts = {file: layouts_of(file) for file in FILES}
    assert layouts["lion8bit"] == layouts["lamb8bit"] == {256, None}
    assert layouts["lion32bit"] == layouts["lamb32bit"] == {None}
    assert layouts["lion8bit_blocks_of_2048"] == {2048}
    assert layouts["lamb8bit_tensorwise"] == {0, None}
