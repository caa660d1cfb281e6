"""`apply_fused` takes the step that `update` and `apply_updates` take, in fewer bytes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lamblion
from optax_lamblion import apply_fused, lamb8bit, lion8bit
from tests.kernels.interpreted import interpreted

NAMES = ["lion8bit", "lion32bit", "lamb8bit", "lamb32bit", "adamw8bit", "adamw32bit"]


def problem(dtype=jnp.float32, grad_dtype=None):
    rng = np.random.default_rng(0)
    shapes = {"matrix": (32, 256), "ragged": (4097,), "bias": (16,), "scalar": ()}
    params = {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in shapes.items()}
    grads = {k: jnp.asarray(rng.normal(size=s), grad_dtype or dtype) for k, s in shapes.items()}
    return params, grads


def plain(tx, params, grads, state):
    updates, state = optax.with_extra_args_support(tx).update(grads, state, params)
    # `apply_updates` mixes the dtypes of parameters and updates on purpose.
    with jax.numpy_dtype_promotion("standard"):
        return optax.apply_updates(params, updates), state


def assert_two_ulp(a, b, old, units=2):
    """Two units in the last place, of the larger operand where parameter and update cancel.

    The update is rounded once less, which is half a unit, and so is the sum; and XLA may contract
    a multiplication and an addition.
    """
    assert a.dtype == b.dtype
    a, b, old, eps = np.float64(a), np.float64(b), np.float64(old), float(jnp.finfo(b.dtype).eps)
    size = np.maximum(np.abs(old), np.maximum(np.abs(b), np.abs(b - old)))
    assert (np.abs(a - b) <= units * eps * size).all()


def assert_same_steps(tx, params, grads, steps=3, units=2):
    state = tx.init(params)
    fused = jax.jit(lambda p, g, s: apply_fused(tx, p, g, s))
    expected = jax.jit(lambda p, g, s: plain(tx, p, g, s))
    for _ in range(steps):
        old = params
        new, new_state = fused(params, grads, state)
        params, state = expected(params, grads, state)
        jax.tree.map(functools.partial(assert_two_ulp, units=units), new, params, old)
        for a, b in zip(jax.tree.leaves(new_state), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtypes", [("float32",) * 2, ("bfloat16",) * 2, ("float16", "float32")])
def test_equals_update_and_apply_updates(name, dtypes):
    tx = getattr(optax_lamblion, name)(1e-2, weight_decay=0.1)
    assert_same_steps(tx, *problem(*map(jnp.dtype, dtypes)))


@pytest.mark.parametrize("name", ["lion8bit", "lamb8bit", "adamw8bit"])
@pytest.mark.parametrize("dtypes", [("float32",) * 2, ("bfloat16", "float32")])
def test_kernels_write_the_parameters_that_their_updates_lead_to(name, dtypes):
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), getattr(optax_lamblion, name)(1e-2, weight_decay=0.1)
    )
    # A kernel's direction and the factor on it are good to four units more: eight roundings.
    with interpreted():
        assert_same_steps(tx, *problem(*map(jnp.dtype, dtypes)), steps=2, units=6)


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "masked": lambda tx: optax.masked(
        tx, {"matrix": True, "ragged": True, "bias": False, "scalar": False}
    ),
    "partition": lambda tx: optax.partition(
        {"ours": tx, "other": optax.sgd(0.1)},
        {"matrix": "ours", "ragged": "ours", "bias": "other", "scalar": "other"},
    ),
    "multi_steps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "schedule_free_of_ours": lambda tx: optax.chain(tx),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize("make", [lion8bit, lamb8bit])
def test_works_through_wrappers(make, wrap):
    tx = wrap(make(optax.linear_schedule(1e-2, 1e-3, 5), weight_decay=0.1))
    # MultiSteps and apply_if_finite multiply counters and floats.
    with jax.numpy_dtype_promotion("standard"):
        assert_same_steps(tx, *problem())


def test_works_through_inject_hyperparams():
    assert_same_steps(optax.inject_hyperparams(lion8bit)(1e-2, weight_decay=0.1), *problem())


def test_takes_any_optax_transformation():
    assert_same_steps(optax.sgd(0.1, momentum=0.9), *problem())


def test_none_gradients_leave_their_parameters():
    params, grads = problem()
    grads["bias"] = None
    tx = lion8bit(1e-2)
    new, _ = apply_fused(tx, params, grads, tx.init(params))
    assert new["bias"] is params["bias"]
    assert not np.array_equal(new["matrix"], params["matrix"])


@pytest.mark.parametrize(
    "after", [optax.scale(0.5), optax.add_decayed_weights(0.1), optax.clip(1.0), optax.trace(0.9)]
)
def test_a_transformation_after_ours_fails_loudly(after):
    params, grads = problem()
    tx = optax.chain(lion8bit(1e-2), after)
    # A function of `jax.numpy` gets there first, and names the box.
    with pytest.raises(TypeError, match=r"Put the optimizer last|fused\.Applied"):
        apply_fused(tx, params, grads, tx.init(params))


@pytest.mark.parametrize(
    "block", [optax_lamblion.scale_by_lion, optax_lamblion.scale_by_lamb], ids=["lion", "lamb"]
)
def test_building_blocks_take_the_plain_path(block):
    assert_same_steps(optax.chain(block(bits=8), optax.scale_by_learning_rate(1e-2)), *problem())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lion_needs_no_memory_but_parameters_and_state(dtype):
    params = jnp.zeros((1024, 1024), dtype)
    tx = lion8bit(1e-3, weight_decay=0.1)
    state = tx.init(params)
    step = jax.jit(lambda p, g, s: apply_fused(tx, p, g, s), donate_argnums=(0, 2))
    compiled = step.lower(params, params, state).compile()
    memory = compiled.memory_analysis()
    # Scales may be kept twice (1/64 byte per parameter each); an update would be 2 or 4 bytes.
    assert memory.temp_size_in_bytes < 0.1 * params.size
    assert memory.alias_size_in_bytes >= params.nbytes + state.mu.nbytes
