"""A run that began with Optax's own Lion or LAMB goes on as if nothing had happened."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import convert_state, lamb32bit, lion8bit, lion32bit, scale_by_lion
from tests.checkpoints import problem
from tests.checkpoints.test_convert_forms import FORMS, LABELS, ours

DECAYS = {"rows": True, "odd_tail": True, "small": False}
SCHEDULE = optax.linear_schedule(1e-3, 1e-4, 100)
THEIRS = {
    "lion": (optax.lion(1e-3, weight_decay=0.1), lion32bit(1e-3, weight_decay=0.1)),
    "lion with a schedule": (optax.lion(SCHEDULE), lion32bit(SCHEDULE, weight_decay=1e-3)),
    "lion with a mask": (
        optax.lion(SCHEDULE, mask=DECAYS),
        lion32bit(SCHEDULE, weight_decay=1e-3, mask=DECAYS),
    ),
    "lion in a chain": (
        optax.chain(optax.clip_by_global_norm(1.0), optax.lion(SCHEDULE)),
        optax.chain(optax.clip_by_global_norm(1.0), lion32bit(SCHEDULE, weight_decay=1e-3)),
    ),
    "its building blocks": (
        optax.chain(optax.scale_by_lion(), optax.scale_by_learning_rate(SCHEDULE)),
        optax.chain(scale_by_lion(), optax.scale_by_learning_rate(SCHEDULE)),
    ),
    "lamb": (optax.lamb(1e-3, eps=1e-8), lamb32bit(1e-3)),
    "lamb with a schedule": (
        optax.lamb(SCHEDULE, eps=1e-8, weight_decay=0.1),
        lamb32bit(SCHEDULE, weight_decay=0.1),
    ),
}


def steps(tx, p, state, count, first=1):
    with jax.numpy_dtype_promotion("standard"):  # which `optax.lamb` needs
        update = jax.jit(tx.update)
        for seed in range(first, first + count):
            updates, state = update(problem.params(seed=seed), state, p)
            p = optax.apply_updates(p, updates)
    return p, state


@pytest.mark.parametrize("form", ["as it is", "Orbax without a target", "bytes"])
@pytest.mark.parametrize("name", THEIRS)
def test_a_run_of_optax_goes_on(name, form, tmp_path):
    theirs, tx = THEIRS[name]
    p, old = steps(theirs, problem.params(), theirs.init(problem.params()), 3)
    state = convert_state(FORMS[form](old, tmp_path), p, tx)
    expected, _ = steps(theirs, p, old, 2, first=4)
    there, state = steps(tx, p, state, 2, first=4)
    for leaf in p:
        if "lamb" in name:
            # As over all steps of the two: they add up norms in another order.
            np.testing.assert_allclose(there[leaf], expected[leaf], rtol=1e-6, atol=2e-6)
        else:
            np.testing.assert_array_equal(there[leaf], expected[leaf])
    assert ours(state)[0].count == 5


def test_moments_of_optax_in_bfloat16_become_float32():
    p = jax.tree.map(lambda x: x.astype(jnp.bfloat16), problem.params())
    theirs = optax.lion(1e-3)
    _, old = theirs.update(p, theirs.init(p), p)
    assert old[0].mu["rows"].dtype == jnp.bfloat16
    state = convert_state(old, p, lion32bit())
    for leaf in p:
        np.testing.assert_array_equal(state.mu[leaf], np.asarray(old[0].mu[leaf], np.float32))


def test_two_of_optax_are_told_apart_by_where_they_are():
    p = problem.params()
    theirs = optax.partition({"a": optax.lion(1e-3), "b": optax.lion(1e-4)}, LABELS)
    tx = optax.partition({"a": lion32bit(1e-3), "b": lion8bit(1e-4)}, LABELS)
    _, old = steps(theirs, p, theirs.init(p), 2)
    a, b = ours(convert_state(old, p, tx))
    np.testing.assert_array_equal(a.mu["rows"], old.inner_states["a"].inner_state[0].mu["rows"])
    np.testing.assert_array_equal(b.mu["small"], old.inner_states["b"].inner_state[0].mu["small"])
    assert b.mu["odd_tail"].dtype == np.uint8
