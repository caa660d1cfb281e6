"""What the benchmarks of quality measure, on problems of which the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import records
from benchmarks.quality import report, statistics, synthetic, tasks, training, variants
from benchmarks.quality.kept import Kept
from benchmarks.quality.statistics import Interval, interval


@pytest.fixture(autouse=True, scope="module")
def as_users_have_it():
    """JAX as it comes: Optax's schedules mix integers and floats."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def task():
    """Least squares with one matrix: everything of a task, and compiled at once."""
    target = jax.random.normal(jax.random.key(9), (32, 32))

    def batch(data, key, size):
        x = jax.random.normal(key, (size, 32))
        return x, x @ data

    def loss(params, batch):
        return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)

    x = jax.random.normal(jax.random.key(8), (64, 32))
    starts = [{"w": jax.random.normal(jax.random.key(i), (32, 32))} for i in range(tasks.SEEDS)]
    return tasks.Task(
        "squares", "squares", 8, tasks.stack(starts), target, (x, x @ target), batch, loss
    )


@pytest.mark.parametrize(
    "rule", [variants.RULES["lion"], variants.RULES["adamw"]], ids=["lion", "adamw"]
)
def test_a_training_has_a_loss_for_every_seed_and_learns(task, rule):
    found = training.train(task, rule, variants.DEFAULT, steps=40, evaluations=2)
    assert found["steps"] == [0, 20, 40]
    first, last = np.array(found["loss"][0]), np.array(found["loss"][-1])
    assert first.shape == (tasks.SEEDS,) and len(set(first)) == tasks.SEEDS
    assert np.all(last < first)
    assert np.all(np.array(found["differs"]) > 0)


def test_float32_beside_float32_would_differ_by_nothing(task):
    rule = variants.RULES["adamw"]
    tx = variants.FLOAT32.direction(rule)
    g = jax.random.normal(jax.random.key(0), (32, 32))
    one, _ = tx.update(g, tx.init(g), g)
    assert training.apart(rule, one, one) == 0
    assert training.apart(rule, one, 2 * one) == pytest.approx(0.5)


def test_of_lion_signs_are_counted_over_all_leaves():
    exact = {"a": jnp.ones(6), "b": jnp.ones(2)}
    coded = {"a": jnp.ones(6).at[0].set(0), "b": -jnp.ones(2)}
    differ, opposite = training.apart(variants.RULES["lion"], coded, exact)
    assert (differ, opposite) == (3 / 8, 2 / 8)


def test_errors_are_in_units_of_the_rms_of_their_leaf():
    exact = {"large": jnp.full((1, 99), 1000.0), "small": jnp.full((1, 2), 0.1)}
    coded = {"large": exact["large"].at[0, 0].add(500), "small": exact["small"].at[0, 0].add(0.3)}
    median, _, worst = training.error_quantiles(coded, exact)[0]
    assert median == 0
    assert worst == pytest.approx(3, rel=1e-5)


def test_the_shadow_sees_the_gradients_of_the_run_and_a_moved_start_is_moved_that_much(task):
    rule = variants.RULES["lion"]
    params, _, judge, _ = training.start(task, rule, variants.MOVED)
    assert judge is None
    off = np.abs(np.asarray(params["w"] / task.params["w"] - 1))
    assert 0 < off.max() < 1e-5


@pytest.mark.parametrize("name", ["digits", "text"])
def test_every_matrix_of_a_model_is_stored_in_8_bits(name):
    if name == "digits":
        params = jax.eval_shape(tasks.digit_params, jax.random.key(0))
    else:
        params = jax.eval_shape(lambda: _small_transformer().params)
    matrices = [x.size for x in jax.tree.leaves(params) if x.ndim > 1]
    small = [size for size in matrices if size < variants.LEAST]
    # The first convolution has a channel of input, and 144 elements.
    assert len(matrices) > 3 and sum(small) <= 144


def _small_transformer():
    from optax_lamblion.demo import text
    from optax_lamblion.demo.language import text_task
    from optax_lamblion.demo.transformer import TransformerConfig

    part = np.frombuffer(bytes(range(256)) * 2, np.uint8)
    corpus = text.Corpus(part, part, "all bytes")
    config = TransformerConfig(width=32, layers=2, heads=2, seq_len=32)
    return text_task(corpus, config, batch_size=1, seed=0)


def test_a_convolution_by_patches_is_one():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    layer = {"kernel": kernel.reshape(27, 5), "bias": jnp.zeros(5)}
    dimensions = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
    found = jax.jit(lambda x: tasks._dense(layer, tasks._patches(x)))(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # sums of 27 products of size 1


# Synthetic gradients


def test_every_kind_and_scale_is_compared():
    found = synthetic.compare(variants.RULES["lion"], variants.DEFAULT, steps=60)
    assert len(found) == len(synthetic.SCALES) + len(synthetic.KINDS) - 1
    stored, exact = found["stopping, 1"]["left"]
    # Momentum of 15 steps that has fallen for 45, over that of 60 steps.
    left = 0.99**45 * np.sqrt((1 - 0.99**30) / (1 - 0.99**120))
    # The rms of 1,024 normal numbers has a standard error of 2 %, and dither is right on average.
    assert np.mean(exact) == pytest.approx(left, rel=0.1)
    assert np.mean(stored) == pytest.approx(left, rel=0.1)
    for case in found.values():
        assert np.all(np.array(case["opposite"]) <= np.array(case["differs"]))
        assert np.mean(case["differs"]) < 0.05


@pytest.fixture(scope="module")
def gradient():
    """Gradients by their kind and the number of the step, of 40; compiled once for all kinds."""
    key, sizes = jax.random.key(0), jnp.ones(synthetic.ELEMENTS)
    compiled = jax.jit(lambda kind, number: synthetic.gradient(kind, key, sizes, number, 40))
    return lambda kind, number: compiled(list(synthetic.KINDS).index(kind), number)


def test_gradients_stop_after_a_quarter_of_the_steps(gradient):
    assert gradient("stopping", 9).all()
    late = gradient("stopping", 10)
    assert late[::2].all() and not late[1::2].any()


def test_gradients_turn_after_a_quarter_of_the_steps(gradient):
    for number, mean in ((9, 1.0), (10, -0.1)):
        g = gradient("turning", number)
        # Of 1,024 elements with a standard deviation of 0.3: 0.05 is 5 standard errors.
        assert float(g[1::2].mean()) == pytest.approx(mean, abs=0.05)
        assert float(g[::2].mean()) == pytest.approx(1.0, abs=0.05)


def test_sparse_gradients_are_zero_but_for_one_percent(gradient):
    share = float(jnp.mean(gradient("sparse", 0) != 0))
    assert share == pytest.approx(0.01, abs=0.01)  # 4.5 standard deviations of 2,048 draws


def test_heavy_tails_are_those_of_student_s_t():
    p = np.array([0.001, 0.1, 0.5, 0.9, 0.9999])
    np.testing.assert_allclose(synthetic.student_t_2(p), stats.t.ppf(p, 2), rtol=1e-4, atol=1e-6)


# Statistics and tables


def test_an_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = interval(a - b)
    assert found.mean - found.half == pytest.approx(low)
    assert found.mean + found.half == pytest.approx(high)


def test_an_interval_says_whether_zero_is_in_it():
    assert Interval(0.1, 0.2).holds_zero and not Interval(-0.3, 0.2).holds_zero
    assert str(Interval(-0.00123, 0.0045)) == "-0.0012 ± 0.0045"


def test_a_difference_is_from_float32_of_the_same_seed():
    ways = {
        "float32": {"loss": [[9.0, 9.0], [1.0, 2.0]]},
        "power, 256": {"loss": [[9.0, 9.0], [1.5, 2.25]]},
    }
    assert statistics.excess(ways, "power, 256").tolist() == [0.5, 0.25]


@pytest.mark.parametrize("start", ["quality.digits", "quality.synthetic", "accuracy"])
def test_the_figures_of_a_record_are_numbers(start):
    figures = [
        make
        for name, make in report.FIGURES.items()
        if name.startswith(start) and not (start == "quality.digits" and _left_out(name))
    ]
    assert figures
    for make in figures:
        figure = make()
        assert figure.strip() and "nan" not in figure


def _left_out(name):
    """Whether a figure is of a way that has not been trained yet."""
    ways = records.load("quality-digits")["results"]["rules"]["lion"]["ways"]
    keys = {report._key(way) for way in variants.TRAINED if way.name not in ways}
    return bool(keys & set(name.split(".")))


def test_what_is_kept_is_not_measured_again(tmp_path):
    kept = Kept(tmp_path)
    assert kept("text lion power, 256", lambda: {"loss": [1.0]}) == {"loss": [1.0]}
    assert kept("text lion power, 256", lambda: 1 / 0) == {"loss": [1.0]}
    assert Kept(None)("text lion power, 256", lambda: 2) == 2
