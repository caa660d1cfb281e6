"""Small leaves step together on a GPU, and take the steps that they take one by one.

Here on a CPU, with the choice between the two made as on a GPU.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_lamblion import (
    StateOptions,
    adamw8bit,
    apply_fused,
    lamb8bit,
    lamb32bit,
    lion8bit,
    paged_lamb8bit,
    paged_lion8bit,
)
from optax_lamblion._steps import batches, together
from pallas_kernels import dispatch

SHAPES = {
    **{f"bias{i}": (300,) for i in range(3)},
    **{f"scale{i}": (8, 16) for i in range(2)},
    "number": (),
    "another": (),
    "nothing": (0,),
    "alone": (7,),
    "matrix0": (3, 1501),
    "matrix1": (3, 1501),
}


@pytest.fixture
def as_on_gpus(monkeypatch):
    """A function: from its call on, leaves step as on a GPU, by XLA."""

    def from_now_on():
        monkeypatch.setattr(dispatch, "compiles_for", lambda: {"cuda"})
        monkeypatch.setattr(together, "platform_dependent", lambda *, cuda, default: cuda())
        jax.clear_caches()

    yield from_now_on
    jax.clear_caches()


def tree(seed, shapes=None, dtypes=(jnp.float32,)):
    """Numbers for every leaf, of every dtype in turn."""
    shapes = SHAPES if shapes is None else shapes
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape), dtypes[i % len(dtypes)])
        for i, (name, shape) in enumerate(shapes.items())
    }


def run(tx, fused=True, dtypes=(jnp.float32,), steps=2, change=lambda grads: grads):
    """Parameters (or updates) and the state after some steps."""

    @jax.jit
    def step(params, state, grads):
        if fused:
            return apply_fused(tx, params, grads, state)
        return tx.update(grads, state, params)

    params = tree(0, dtypes=dtypes)
    state = tx.init(params)
    for i in range(steps):
        out, state = step(params, state, change(tree(i + 1, dtypes=dtypes)))
        params = out if fused else params
    return out, state


def with_broken_numbers(grads):
    """Gradients of which some are no numbers or infinite, and one is zero."""
    bias = grads["bias0"].at[:3].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf]))
    return grads | {"bias0": bias, "bias1": jnp.zeros_like(grads["bias1"])}


def without_some(grads):
    """Gradients of which two are missing."""
    return grads | {"bias1": None, "matrix0": None}


def assert_same(alone, together, ulps=0):
    """The same to the last bit, or up to so many units in the last place of the largest number.

    What differs in LAMB is the order of its sums and of two products: 2 units of a ratio and two
    roundings. A code moves by one where that meets the middle between two.
    """
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a), np.asarray(b)
        if ulps and a.dtype == np.int8:  # residuals, where a step meets the middle between two
            assert np.abs(a.astype(int) - b).max(initial=0) <= 1 and np.mean(a != b) < 0.02
            continue
        if not ulps or a.dtype.kind in "ui" or not a.size:
            np.testing.assert_array_equal(a, b)
            continue
        eps = float(jnp.finfo(a.dtype).eps)
        a, b = a.astype(np.float64), b.astype(np.float64)
        finite = np.abs(a[np.isfinite(a)])
        bound = ulps * eps * (finite.max() if finite.size else 0)
        np.testing.assert_allclose(a, b, rtol=0, atol=bound)


CASES = {
    "decay": (dict(weight_decay=0.1), {}),
    "updates": (dict(weight_decay=0.1), dict(fused=False)),
    "bfloat16": (dict(weight_decay=0.1), dict(dtypes=(jnp.bfloat16,))),
    "stochastic": (
        dict(weight_decay=0.1, options=StateOptions(param_rounding="stochastic")),
        dict(dtypes=(jnp.bfloat16, jnp.float32, jnp.float16)),
    ),
    "compensated": (
        dict(weight_decay=0.1, options=StateOptions(param_rounding="compensated")),
        dict(dtypes=(jnp.bfloat16, jnp.float32, jnp.float16)),
    ),
    "mixed": (dict(weight_decay=0.1), dict(dtypes=(jnp.bfloat16, jnp.float32, jnp.float32))),
    "broken": (
        dict(weight_decay=0.1, options=StateOptions(count_skipped=True)),
        dict(change=with_broken_numbers),
    ),
    "missing": (dict(weight_decay=0.1), dict(change=without_some)),
    "clipped": (dict(weight_decay=0.1, percentile_clipping=50), {}),
    "masked": (
        dict(
            weight_decay=0.1,
            mask=lambda p: {name: jnp.asarray("bias" not in name) for name in p},
        ),
        {},
    ),
    "schedule": (dict(learning_rate=optax.linear_schedule(0.1, 0.01, 3)), {}),
}


QUICK = [(lion8bit, "decay"), (lamb8bit, "mixed")]


def _rows():
    for make, case in itertools.product([lion8bit, adamw8bit, lamb8bit], CASES):
        marks = [] if (make, case) in QUICK else [pytest.mark.slow]
        yield pytest.param(make, case, id=f"{make.__name__}-{case}", marks=marks)


@pytest.mark.parametrize(("make", "case"), list(_rows()))
def test_the_same_steps(make, case, as_on_gpus):
    settings, kwargs = CASES[case]
    settings = dict(learning_rate=1e-2) | settings
    alone = run(make(**settings), **kwargs)
    as_on_gpus()
    assert_same(alone, run(make(**settings), **kwargs), 8 if make is lamb8bit else 0)


@pytest.mark.slow
@pytest.mark.parametrize("make", [paged_lion8bit, paged_lamb8bit, lamb32bit])
def test_pages_and_float32(make, as_on_gpus):
    alone = run(make(1e-2, weight_decay=0.1))
    as_on_gpus()
    assert_same(alone, run(make(1e-2, weight_decay=0.1)), 0 if make is paged_lion8bit else 8)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lion8bit, AxisType.Auto),
        pytest.param(lion8bit, AxisType.Explicit, marks=pytest.mark.slow),
        pytest.param(lamb8bit, AxisType.Auto, marks=pytest.mark.slow),
        (lamb8bit, AxisType.Explicit),
    ],
)
def test_shards(make, kind, as_on_gpus):
    def on_mesh():
        mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
        shapes = {"bias0": (304,), "bias1": (304,), "bias2": (304,), "matrix": (64, 256)}
        tx = make(1e-2, weight_decay=0.1)
        with jax.set_mesh(mesh):
            params, grads = (
                {
                    name: jax.device_put(x, NamedSharding(mesh, P() if name == "bias2" else P("x")))
                    for name, x in tree(seed, shapes).items()
                }
                for seed in (0, 1)
            )
            step = jax.jit(lambda p, g, s: apply_fused(tx, p, g, s))
            return step(params, grads, tx.init(params))

    alone = on_mesh()
    as_on_gpus()
    assert_same(alone, on_mesh(), 0 if make is lion8bit else 8)


@pytest.mark.slow
def test_populations(as_on_gpus):
    tx = lamb8bit(1e-2, weight_decay=0.1)

    def steps():
        params = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), tree(0))
        grads = jax.tree.map(lambda x: jnp.stack([x, -x]), tree(1))
        state = jax.vmap(tx.init)(params)
        return jax.vmap(lambda p, g, s: apply_fused(tx, p, g, s))(params, grads, state)

    alone = steps()
    as_on_gpus()
    assert_same(alone, steps(), 8)


@pytest.mark.slow
def test_a_step_can_be_differentiated(as_on_gpus):
    shapes = {name: shape for name, shape in SHAPES.items() if "matrix" not in name}
    params, grads = tree(0, shapes), tree(1, shapes)
    tx = lamb8bit(1e-2, weight_decay=0.1)
    state = tx.init(params)

    def total(scale):
        scaled = jax.tree.map(lambda x: scale * x, params)
        new, _ = apply_fused(tx, scaled, grads, state)
        return sum(jnp.sum(new[name]) for name in ("bias0", "bias1", "scale0"))

    alone = jax.jit(jax.grad(total))(1.5)
    as_on_gpus()
    np.testing.assert_allclose(jax.jit(jax.grad(total))(1.5), alone, rtol=1e-5)


def test_no_more_than_so_many_share_an_array(as_on_gpus, monkeypatch):
    monkeypatch.setattr(batches, "MOST", 2)
    alone = run(lion8bit(1e-2, weight_decay=0.1))
    as_on_gpus()
    made = []
    make = batches.make
    monkeypatch.setattr(batches, "make", lambda leaves: made.append(make(leaves)) or made[-1])
    assert_same(alone, run(lion8bit(1e-2, weight_decay=0.1)))
    sizes = [len(batch.numbers) for batch in made[0]]
    assert max(sizes) == 2
    assert sum(sizes) == len(SHAPES) - 2  # all but the two in 8 bits
