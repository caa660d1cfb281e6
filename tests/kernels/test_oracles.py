"""The judges are judged first: against Optax, against each other, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import oracles

SIGNED = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
CODEC = pytest.mark.parametrize("codec", oracles.CODECS)


@SIGNED
def test_closed_form_of_the_dynamic_map_is_the_table(signed):
    table, formula = oracles.bitsandbytes_map(signed), oracles.closed_form_map(signed)
    # bitsandbytes' own map varies by this much between processors (its linspace is vectorised).
    np.testing.assert_array_less(abs(table - formula), 2 * np.spacing(abs(table)) + 1e-45)


def test_dynamic_map_has_the_documented_landmarks():
    signed, unsigned = oracles.levels("dynamic", True), oracles.levels("dynamic", False)
    assert (signed[0], signed[128], unsigned[0], unsigned[255]) == (0, 1, 0, 1)
    np.testing.assert_allclose(signed[[129, 255]], [-0.99296875, -5.5e-7], rtol=1e-7)
    np.testing.assert_allclose(signed[[1, 127]], [5.5e-7, 0.99296875], rtol=1e-7)
    np.testing.assert_allclose(unsigned[[1, 254]], [3.25e-7, 0.99648438], rtol=1e-7)


@CODEC
@SIGNED
def test_codebooks_count_rungs_in_two_s_complement(codec, signed):
    table, top = oracles.levels(codec, signed), 255
    assert table[0] == 0 and np.unique(table).size == 256
    if signed:
        top = 128 if codec == "dynamic" else 127  # what is beyond is negative
        below = table[top + 1 :][::-1]
        assert below.max() < 0
        # The same levels with a sign, but for -1 of a map that has +1 only.
        np.testing.assert_array_equal(below[:127], -table[1:128])
    assert (np.diff(table[: top + 1]) > 0).all()
    assert table[top] == 1


@CODEC
@SIGNED
def test_written_codes_are_ranked_by_their_values(codec, signed):
    codes = oracles.written(codec, signed)
    unused = {128} if signed and codec != "dynamic" else set()
    assert set(codes.tolist()) == set(range(256)) - unused
    assert (np.diff(oracles.levels(codec, signed)[codes]) > 0).all()
    np.testing.assert_array_equal(oracles.ranks(codes, codec, signed), np.arange(codes.size))
    assert all(oracles.ranks(code, codec, signed) == -1 for code in unused)


@CODEC
@SIGNED
def test_fast_and_brute_force_judges_agree(codec, signed):
    rng = np.random.default_rng(0)
    tails = rng.normal(size=9000) ** 9 / 1e4
    y = np.concatenate([rng.uniform(-1, 1, 9000), tails, [0, 1e-9, -1e-9]])
    y = np.clip(y if signed else abs(y), -1, 1)
    codes, ties = oracles.nearest(y, codec, signed)
    excess, gap = oracles.nearest_excess(y, codes, codec, signed)
    assert ties.mean() < 1e-3
    np.testing.assert_array_equal(excess, 0)
    # Every other code is further away, by up to the gap for the code on the other side of y.
    written, rank = oracles.written(codec, signed), oracles.ranks(codes, codec, signed)
    beside = written[np.where(rank < written.size - 1, rank + 1, rank - 1)]
    wrong, _ = oracles.nearest_excess(y, beside, codec, signed)
    assert (wrong[~ties] > 0).all()
    assert (excess <= gap).all()


@CODEC
@SIGNED
def test_neighbours_bracket_the_value(codec, signed):
    y = np.linspace(-1 if signed else 0, 1, 20_001)
    table, written = oracles.levels(codec, signed), oracles.written(codec, signed)
    lower, upper = oracles.neighbours(y, codec, signed)
    low, high = (oracles.ranks(codes, codec, signed) for codes in (lower, upper))
    assert ((table[lower] <= y) | (low == 0)).all()
    assert (table[upper] >= y).all()
    assert np.isin(high - low, [0, 1]).all()
    nearest, _ = oracles.nearest(y, codec, signed)
    sign_rule = (nearest == 255) if codec == "dynamic" and signed else np.zeros(y.shape, bool)
    assert (((nearest == lower) | (nearest == upper)) | sign_rule).all()
    for code in (lower, upper):
        assert oracles.admissible(y, code, codec, signed).all()
    too_far = written[np.where(high < written.size - 1, high + 1, low - 1)]
    assert not oracles.admissible(y, too_far, codec, signed).any()


def test_zero_rule_keeps_zero_for_zero():
    y = np.array([0.0, 1e-30, 1.0])
    lower, upper = oracles.neighbours(y, "power", False, zero_rule=True)
    np.testing.assert_array_equal(lower, [0, 1, 255])
    np.testing.assert_array_equal(upper, [0, 1, 255])
    allowed = oracles.admissible(y, np.uint8([0, 0, 255]), "power", False, zero_rule=True)
    np.testing.assert_array_equal(allowed, [True, False, True])


@pytest.mark.parametrize(
    "y, u, codec, signed, code, distance",
    [
        (0.4 / 255, 0.5, "linear", False, 0, 0.1 / 255),
        (0.4 / 255, 0.25, "linear", False, 1, 0.15 / 255),
        (-0.4 / 127, 0.25, "linear", True, 255, 0.15 / 127),
        (-0.4 / 127, 0.75, "linear", True, 0, 0.35 / 127),
        (-1.0, 0.999, "power", True, 129, 0.001 * (1 - (126 / 127) ** 3)),
        (1.0, 0.5, "dynamic", True, 128, 0.5 * 0.00703125),
        (-1.0, 0.5, "dynamic", True, 129, 0.5 * 0.00703125),
    ],
)
def test_rounding_turns_by_hand(y, u, codec, signed, code, distance):
    seen, how_far, _ = oracles.turned(np.float64([y]), u, codec, signed)
    assert seen.tolist() == [code]
    # The dynamic map's levels are float32 numbers.
    assert how_far[0] == pytest.approx(distance, rel=1e-5)


@CODEC
@SIGNED
def test_half_a_gap_is_the_nearest_code(codec, signed):
    rng = np.random.default_rng(1)
    y = np.concatenate([rng.uniform(-1, 1, 5000), rng.normal(size=5000) ** 9 / 1e4])
    y = np.clip(y if signed else abs(y), -1, 1)
    codes, distance, gap = oracles.turned(y, 0.5, codec, signed)
    if codec == "dynamic" and signed:
        codes = np.where((y < 0) & (codes == 0), np.uint8(255), codes)  # its rule of signs
    expected, _ = oracles.nearest(y, codec, signed)
    clear = distance > 1e-6 * gap
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(codes[clear], expected[clear])


def test_the_zero_rule_of_turns_keeps_zero_for_zero():
    codes, *_ = oracles.turned(np.array([0.0, 1e-30, 1e-3]), 0.999, "linear", False, zero_rule=True)
    assert codes.tolist() == [0, 1, 1]


def test_dither_by_hand():
    # Step 1 of a leaf without a name (whose checksum is 0): the strides themselves. With a decay,
    # a published hash (lowbias32) of the step's number changes digits: of 0.9 all but three, of
    # 0.999 all but six, as a tenth of 1,000 steps is 2**6.6.
    for slot, stride in enumerate((0x9E3779B9, 0x91E10DA5, 0xD1B54A33)):
        for decay, changed in ((None, 0), (0.9, 0x688990C0 // 8), (0.999, 0x688990C0 // 64)):
            (u,) = oracles.dither(1, "", slot, (1,), 256, decay)
            assert u == ((stride ^ changed) // 2**9 + 0.5) / 2**23
    u = oracles.dither(2, "", 0, (2, 300), 256)
    second = (2 * 0x9E3779B9 + 0xC13FA9A9) % 2**32
    assert u.shape == (2, 300) and np.unique(u).size == 3
    assert u[0, 256] == u[1, 211] == (second // 2**9 + 0.5) / 2**23
    assert np.unique(oracles.dither(2, "", 0, (2, 300), None)).size == 1


@pytest.mark.parametrize(
    "shape, block_size, expected",
    [((), 256, (1,)), ((0,), 256, (0,)), ((257,), 256, (2,)), ((512,), 256, (2,)),
     ((3, 512), 256, (3, 2)), ((3, 100), 256, (2,)), ((2, 3, 4, 64), 32, (2, 3, 4, 2)),
     ((5, 7), None, (1,)), ((0,), None, (0,))],
)  # fmt: skip
def test_absmax_shape_by_hand(shape, block_size, expected):
    assert oracles.absmax_shape(shape, block_size) == expected


def test_blocks_are_consecutive_flat_elements():
    x = np.arange(1.0, 71).reshape(10, 7) * np.where(np.arange(70) % 2, 1, -1).reshape(10, 7)
    np.testing.assert_array_equal(oracles.block_absmax(x, 32), [32, 64, 70])
    y = oracles.normalize(x, oracles.block_absmax(x, 32), 32)
    assert abs(y.ravel()[[31, 63, 69]]).tolist() == [1, 1, 1]


def _two_leaves(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) * rng.lognormal(size=shape) for shape in [(5, 3), (40,)]]


def _float64(tree):
    return [jnp.asarray(leaf, jnp.float64) for leaf in tree]


def test_lion_oracle_is_optax_lion():
    with jax.enable_x64(True):
        tx = optax.lion(0.125, b1=0.9, b2=0.99, weight_decay=0.25)
        params = _two_leaves(0)
        state, mus = tx.init(_float64(params)), [np.zeros_like(p) for p in params]
        for t in range(4):
            grads = _two_leaves(t + 1)
            updates, state = tx.update(_float64(grads), state, _float64(params))
            steps = [
                oracles.lion_step(g, mu, p, learning_rate=0.125, b1=0.9, b2=0.99, weight_decay=0.25)
                for g, mu, p in zip(grads, mus, params, strict=True)
            ]
            mus = [step.mu for step in steps]
            for step, update in zip(steps, updates, strict=True):
                np.testing.assert_allclose(step.update, update, rtol=1e-13)


def _lamb_by_oracle(g, slots, p, t, hyper, bias_correction, amsgrad=False):
    mu, nu, skipped = oracles.lamb_moments(g, slots[0], slots[1], p, b1=0.9, b2=0.999)
    mu_hat = oracles.bias_corrected(mu, 0.9, t, bias_correction)
    nu_hat = oracles.bias_corrected(nu, 0.999, t, bias_correction)
    largest = np.maximum(slots[2], nu_hat)
    root = largest if amsgrad else nu_hat
    return oracles.lamb_update(mu_hat, root, p, skipped, **hyper), (mu, nu, largest)


@pytest.mark.parametrize("amsgrad", [False, True], ids=["lamb", "amsgrad"])
def test_lamb_oracle_is_optax_lamb(amsgrad):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        # Optax has no amsgrad LAMB, but the parts of one.
        tx = optax.chain(
            (optax.scale_by_amsgrad if amsgrad else optax.scale_by_adam)(0.9, 0.999, 1e-8),
            optax.add_decayed_weights(0.25),
            optax.scale_by_trust_ratio(),
            optax.scale_by_learning_rate(0.125),
        )  # fmt: skip
        params = [*_two_leaves(0), np.zeros(7)]  # the last one is zero-initialised: ratio 1
        state = tx.init(_float64(params))
        slots = [(np.zeros_like(p),) * 3 for p in params]
        hyper = dict(learning_rate=0.125, eps=1e-8, weight_decay=0.25)
        for t in range(1, 5):
            grads = [*_two_leaves(t), np.linspace(-1, 1, 7) / t]
            updates, state = tx.update(_float64(grads), state, _float64(params))
            for i, (g, p) in enumerate(zip(grads, params, strict=True)):
                step, slots[i] = _lamb_by_oracle(g, slots[i], p, t, hyper, True, amsgrad)
                np.testing.assert_allclose(step.update, updates[i], rtol=1e-12)


def test_trust_ratio_variants_by_hand():
    p, adam, skipped = np.array([3.0, 4.0]), np.array([0.6, 0.8]), np.zeros(2, bool)

    def ratio(p, **options):
        hyper = dict(learning_rate=1, eps=0, **options)
        return oracles.lamb_update(adam, np.ones(2), p, skipped, **hyper).ratio

    assert ratio(p) == pytest.approx(5)
    assert ratio(p, trust_clip=(0.1, 2.0)) == 2
    assert ratio(p, max_unorm=10.0) == 1
    assert ratio(p, max_unorm=0.1) == pytest.approx(0.5)
    assert ratio(0 * p) == ratio(0 * p, max_unorm=0.1) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_elements_are_left_alone(bad):
    g, mu, p = np.array([bad, 1.0]), np.array([0.5, 0.5]), np.array([3.0, 4.0])
    lion = oracles.lion_step(g, mu, p, learning_rate=1, b1=0.9, b2=0.99, weight_decay=0.1)
    moments = oracles.lamb_moments(g, mu, mu, p, b1=0.9, b2=0.999)
    for step in (lion, moments):
        np.testing.assert_array_equal(step.skipped, [True, False])
        assert step.mu[0] == 0.5
    assert lion.update[0] == 0
    mu, nu, skipped = moments
    step = oracles.lamb_update(mu, nu, p, skipped, learning_rate=1, eps=1e-8)
    assert step.update[0] == 0
    assert step.ratio == pytest.approx(5 / abs(step.direction[1]))


def test_percentile_ring_by_hand():
    history, scale = oracles.percentile_scale(np.zeros(100), np.array([3.0, 4.0]), 1, 5)
    assert scale == 1 and (history == 25).all()
    history, scale = oracles.percentile_scale(history, np.array([0.0, 10.0]), 2, 5)
    assert history[2] == 100 and scale == pytest.approx(0.5)
    history, scale = oracles.percentile_scale(history, np.array([np.nan, 1.0]), 103, 5)
    assert history[3] == 1 and scale == 1
