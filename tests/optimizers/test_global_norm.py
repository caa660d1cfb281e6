"""`clip_by_global_norm` by itself is Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from optax_lamblion import clip_by_global_norm
from tests.optimizers import problem

SHAPES = {"rows": (16, 256), "odd_tail": (4097,), "scalar": (), "none": (0, 3)}
TINY, HUGE = 1e-22, 1e25  # finite, but their squares are not in float32, or are zero
BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "overflow": HUGE}


def gradients(dtype=jnp.float32, scale=1.0, **at):
    """Gradients of a norm of about 90; `at` puts a number into leaves of that name."""
    g = jax.tree.map(lambda x: scale * x, problem.tree(3, jnp.float32, SHAPES))
    g |= {name: jnp.asarray(np.resize([x, 1.0], SHAPES[name])) for name, x in at.items()}
    return jax.tree.map(lambda x: x.astype(dtype), g)


def updates_of(tx, g):
    return tx.update(g, tx.init(g))[0]


def both(max_norm, g, jit=False):
    """What ours and Optax's make of gradients."""
    clips = clip_by_global_norm(max_norm), optax.clip_by_global_norm(max_norm)
    wrap = jax.jit if jit else lambda function: function
    return [wrap(lambda g, tx=tx: updates_of(tx, g))(g) for tx in clips]


class TestPlain:
    @pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
    @pytest.mark.parametrize("max_norm", [1, 0.37, 1e3, np.float32(2), np.inf])
    def test_float32_is_optaxs_to_the_last_bit(self, max_norm, jit):
        problem.assert_equal(*both(max_norm, gradients(), jit))

    def test_a_norm_that_is_the_limit(self):
        g = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([-4.0])}
        for max_norm in (5.0, np.nextafter(np.float32(5), 6), np.nextafter(np.float32(5), 4)):
            problem.assert_equal(*both(max_norm, g))

    @pytest.mark.parametrize("scale", [TINY, 0.0])
    def test_small_gradients_stay(self, scale):
        g = gradients(scale=scale)
        problem.assert_equal(both(1e-3, g)[0], g)

    @pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
    def test_what_is_not_finite_is_what_it_is_in_optax(self, bad):
        problem.assert_equal(*both(1.0, gradients(odd_tail=bad)))

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
    def test_it_is_the_exact_product_rounded_once(self, dtype):
        """Squares of float16 gradients overflow it from 256 on."""
        g = gradients(dtype, scale=300.0)
        exact = {k: np.float64(x.astype(jnp.float32)) for k, x in g.items()}
        norm = np.linalg.norm([np.linalg.norm(x) for x in exact.values()])
        out = updates_of(clip_by_global_norm(1.0), g)
        for name, x in out.items():
            assert x.dtype == dtype
            # In float32 a sum of 8194 squares, a root, a quotient and a product before that.
            rounding = float(jnp.finfo(dtype).eps) / 2 + 64 * 2.0**-24
            tiny = float(jnp.finfo(dtype).smallest_subnormal) / 2
            seen, expected = np.float64(x.astype(jnp.float32)), exact[name] / norm
            assert (np.abs(seen - expected) <= rounding * np.abs(expected) + tiny).all()

    def test_float64(self):
        with jax.enable_x64(True):
            g = problem.tree(3, jnp.float64, SHAPES)
            problem.assert_equal(*both(1.0, g))
            mixed = g | {"rows": g["rows"].astype(jnp.float32)}
            out = updates_of(clip_by_global_norm(1.0), mixed)
            assert out["rows"].dtype == jnp.float32 and out["odd_tail"].dtype == jnp.float64
            norm = np.linalg.norm([np.linalg.norm(np.float64(x)) for x in mixed.values()])
            expected = np.asarray(g["odd_tail"]) / norm
            np.testing.assert_allclose(out["odd_tail"], expected, rtol=1e-13)

    def test_trees(self):
        tx = clip_by_global_norm(1.0)
        assert updates_of(tx, {}) == {} and updates_of(tx, None) is None
        g = {"w": jnp.array([30.0, 40.0]), "none": None}
        out, _ = tx.update(g, tx.init(g), None, value=1.0)
        assert out["none"] is None
        np.testing.assert_allclose(out["w"], [0.6, 0.8], rtol=1e-6)

    def test_a_checkpoint_is_exchanged_with_optaxs(self):
        ours, optaxs = (
            clip(1.0).init({}) for clip in (clip_by_global_norm, optax.clip_by_global_norm)
        )
        problem.assert_equal(ours, optaxs)

    @pytest.mark.parametrize("scale", [1.0, 0.01, 0.0], ids=["clipped", "below", "zeros"])
    def test_derivatives(self, scale):
        g = gradients(scale=scale)

        def loss(g, clip):
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(updates_of(clip(1.0), g)))

        ours = jax.grad(loss)(g, clip_by_global_norm)
        if scale:
            problem.assert_near(ours, jax.grad(loss)(g, optax.clip_by_global_norm), rtol=1e-4)
        else:  # Optax's are NaN
            assert all((x == 1).all() for x in jax.tree.leaves(ours))


class TestLimits:
    @pytest.mark.parametrize("bad", [True, "1", None, (1.0,), 1j, jnp.float32, [1.0]])
    def test_that_are_no_numbers(self, bad):
        with pytest.raises(TypeError, match="`max_norm` must be a number or a schedule"):
            clip_by_global_norm(bad)

    @pytest.mark.parametrize("bad", [jnp.ones(2), np.ones(1), jnp.array(True), np.complex64(1)])
    def test_that_are_arrays(self, bad):
        with pytest.raises(TypeError, match="`max_norm` must be one real number"):
            clip_by_global_norm(bad)

    @pytest.mark.parametrize("bad", [0, -1.0, np.float32(0), -np.inf, np.nan])
    def test_that_clip_nothing_sensible(self, bad):
        with pytest.raises(ValueError, match="`max_norm` must be (positive|a finite number)"):
            clip_by_global_norm(bad)

    def test_by_schedule(self):
        tx = clip_by_global_norm(lambda count: 10.0 / (1 + count.astype(jnp.float32)))
        g = {"w": jnp.array([30.0, -40.0])}
        state = tx.init(g)
        for step in range(3):
            out, state = jax.jit(tx.update)(g, state)
            np.testing.assert_allclose(out["w"], g["w"] / 5 / (step + 1), rtol=1e-6)
        assert state.count == 3

    def test_a_schedule_returns_a_number(self):
        tx = clip_by_global_norm(lambda count: jnp.ones(3))
        with pytest.raises(TypeError, match="`max_norm` must be one real number"):
            updates_of(tx, gradients())

    def test_injected(self):
        tx = optax.inject_hyperparams(clip_by_global_norm)(max_norm=optax.linear_schedule(8, 2, 2))
        g = {"w": jnp.array([30.0, -40.0])}
        state = tx.init(g)
        for limit in (8, 5, 2):
            out, state = jax.jit(tx.update)(g, state)
            np.testing.assert_allclose(np.linalg.norm(out["w"]), limit, rtol=1e-6)

    @pytest.mark.parametrize("bad", [3, jnp.array([3 + 4j]), jnp.array([3])], ids=str)
    def test_gradients_are_floating_point(self, bad):
        with pytest.raises(TypeError, match="Gradient 'w'"):
            updates_of(clip_by_global_norm(1.0), {"w": bad})

    @pytest.mark.parametrize("axes", [3, "data", {"w": ("data",)}, (1,)])
    def test_norm_axes_are_names_or_specs(self, axes):
        with pytest.raises(TypeError, match="`norm_axes` must be a tuple of names"):
            clip_by_global_norm(1.0, norm_axes=axes)

    def test_norm_axes_are_those_of_the_gradients(self):
        tx = clip_by_global_norm(1.0, norm_axes={"v": PartitionSpec("data")})
        with pytest.raises(ValueError, match="`norm_axes` must have a `PartitionSpec` for every"):
            updates_of(tx, {"w": jnp.ones(3)})
