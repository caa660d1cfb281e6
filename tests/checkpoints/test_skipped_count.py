"""The count of skipped elements goes on where there is one, and starts at zero elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion import (
    StateOptions,
    convert_state,
    lamb8bit,
    lamb32bit,
    lion8bit,
    lion32bit,
    paged_lion8bit,
    restore_target,
)
from tests.checkpoints import problem
from tests.checkpoints.test_convert_forms import FORMS
from tests.optimizers.test_errors import check
from tests.variants import small_pages

COUNTS = StateOptions(count_skipped=True)
OPTIMIZERS = {
    "lion8bit": lion8bit(1e-3, options=COUNTS),
    "lion32bit": lion32bit(1e-3, options=COUNTS),
    "lamb8bit": lamb8bit(1e-3, options=COUNTS),
    "lamb32bit": lamb32bit(1e-3, options=COUNTS),
    "paged_lion8bit": paged_lion8bit(1e-3, options=small_pages(COUNTS)),
}
rows = pytest.mark.parametrize("tx", OPTIMIZERS.values(), ids=OPTIMIZERS)


def with_nan(p):
    """Gradients of which two elements are not finite."""
    g = jax.tree.map(jnp.asarray, problem.params(seed=1))
    bad = {"rows": g["rows"].at[3, 5].set(np.nan), "small": g["small"].at[2].set(np.inf)}
    return jax.tree.map(lambda x, p: jax.device_put(x, p.sharding), g | bad, p)


@pytest.mark.parametrize("place", ["one device", "8 devices"])
@rows
def test_a_run_counts_on_from_a_checkpoint(tx, place, tmp_path):
    p = problem.params(place)
    _, state = jax.jit(tx.update)(with_nan(p), tx.init(p), p)
    assert state.skipped == 2
    problem.save(tmp_path / "saved", state)
    target = restore_target(tx, p, problem.metadata(tmp_path / "saved"))
    restored = problem.restore(tmp_path / "saved", target)
    assert problem.bits(restored) == problem.bits(state)
    problem.assert_in_place(restored, problem.expected_places(tx, p))
    state = convert_state(restored, p, tx)
    problem.assert_in_place(state, problem.expected_places(tx, p))
    _, state = jax.jit(tx.update)(with_nan(p), state, p)
    assert state.skipped == 4 and state.skipped.dtype == np.int32


@pytest.mark.parametrize("form", FORMS)
def test_a_count_is_converted_from_whatever_it_comes_in(form, tmp_path):
    p = problem.params()
    old = problem.filled(lion8bit(options=COUNTS).init(p))
    tx = lion8bit(options=StateOptions(block_size=64, count_skipped=True))
    assert convert_state(FORMS[form](old, tmp_path), p, tx).skipped == old.skipped == 77


@rows
def test_without_a_count_it_starts_at_zero(tx, tmp_path):
    p = problem.params("8 devices")
    without = tx.init(p)._replace(skipped=None)
    problem.save(tmp_path / "saved", without)
    saved = problem.metadata(tmp_path / "saved")
    wants = ["`skipped`", "`StateOptions(count_skipped=True)`", "from zero", "`convert=True`"]
    check(lambda: restore_target(tx, p, saved), ValueError, wants)
    target = restore_target(tx, p, saved, convert=True)
    assert target.skipped is None
    state = convert_state(problem.restore(tmp_path / "saved", target), p, tx)
    assert state.skipped == 0 and state.skipped.dtype == np.int32
    problem.assert_in_place(state, problem.expected_places(tx, p))
    _, state = jax.jit(tx.update)(with_nan(p), state, p)
    assert state.skipped == 2


def test_a_count_that_has_no_place_is_refused_until_it_is_left_behind():
    """As gradient norms are."""
    p = problem.params()
    state = problem.filled(lion8bit(options=COUNTS).init(p))
    for refuse in (
        lambda: convert_state(state, p, lion8bit()),
        lambda: restore_target(lion8bit(), p, state),
        lambda: restore_target(lion8bit(), p, state, convert=True),
    ):
        check(refuse, ValueError, ["'skipped'", "no place", "remove the leaf"])
    left = convert_state(state._replace(skipped=None), p, lion8bit())
    assert problem.bits(left) == problem.bits(state._replace(skipped=None))


@pytest.mark.parametrize("bits", [8, 32])
def test_update_refuses_a_count_too_many_and_one_too_few(bits):
    p = problem.params()
    make = {8: lion8bit, 32: lion32bit}[bits]
    plain, counting = make(), make(options=COUNTS)
    more, less = counting.init(p), plain.init(p)
    wants = ["`skipped`", "does not keep", "`options=StateOptions(count_skipped=True)`"]
    wants += ["`state._replace(skipped=None)`"]
    check(lambda: plain.update(p, more, p), ValueError, wants)
    plain.update(p, more._replace(skipped=None), p)
    wants = ["no `skipped`", "`StateOptions(count_skipped=True)`", "`convert_state(state, params"]
    check(lambda: counting.update(p, less, p), ValueError, wants)
    _, state = counting.update(p, convert_state(less, p, counting), p)
    assert state.skipped == 0
