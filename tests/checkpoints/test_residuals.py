"""What parameters of 16 bits have beyond them is saved, restored, converted and looked at."""

import warnings

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion import (
    StateOptions,
    adamw8bit,
    apply_fused,
    check_state,
    convert_state,
    from_bitsandbytes,
    full_precision,
    lion8bit,
    lion32bit,
    paged_lion8bit,
    restore_target,
    state_report,
    state_sharding,
    to_bitsandbytes,
)
from tests.checkpoints import problem
from tests.optimizers.problem import assert_equal

DTYPES = {"rows": jnp.bfloat16, "odd_tail": jnp.float16, "small": jnp.float32}
MAKES = pytest.mark.parametrize("make", [lion8bit, paged_lion8bit, adamw8bit])


def params(place="one device", seed=0):
    """Parameters of every dtype, or gradients."""
    return {name: x.astype(DTYPES[name]) for name, x in problem.params(place, seed=seed).items()}


def with_residuals(make=lion8bit, **options):
    options = StateOptions(param_rounding="compensated", page_min_size=1000, **options)
    return make(1e-3, weight_decay=0.1, options=options)


def trained(tx, steps=2, place="one device", start=None, first=0):
    p, state = (params(place), None) if start is None else start
    state = tx.init(p) if state is None else state
    for i in range(first, first + steps):
        p, state = apply_fused(tx, p, params(place, seed=i + 1), state)
    return p, state


def through_orbax(state, tx, p, folder):
    problem.save(folder / "saved", state)
    target = restore_target(tx, p, problem.metadata(folder / "saved"))
    return problem.restore(folder / "saved", target)


def through_orbax_without_a_target(state, tx, p, folder):
    problem.save(folder / "saved", state)
    return problem.restore(folder / "saved")


def through_flax(state, tx, p, folder):
    return flax.serialization.from_bytes(tx.init(p), flax.serialization.to_bytes(state))


WAYS = [through_orbax, through_orbax_without_a_target, through_flax]


@MAKES
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_run_goes_on_bit_for_bit(make, way, tmp_path):
    tx = with_residuals(make)
    p, state = trained(tx)
    assert all(np.abs(np.asarray(state.residual[x])).max() > 50 for x in ("rows", "odd_tail"))
    restored = convert_state(way(state, tx, p, tmp_path), p, tx)
    assert_equal(restored, state)
    problem.assert_in_place(restored, problem.expected_places(tx, p))
    again = trained(tx, 1, start=(p, restored), first=2)
    assert_equal(again, trained(tx, 1, start=(p, state), first=2))


@pytest.mark.parametrize("place", ["8 devices", "4 devices"])
@pytest.mark.parametrize("make", [lion8bit, paged_lion8bit])
def test_residuals_go_where_moments_go(make, place, tmp_path):
    tx = with_residuals(make)
    _, state = trained(tx)
    p = params(place)
    restored = through_orbax(state, tx, p, tmp_path)
    assert problem.bits(restored) == problem.bits(state)
    places = state_sharding(tx, p)
    assert places.residual["rows"] == places.mu["rows"]
    assert places.residual["small"].is_fully_replicated
    kind = "pinned_host" if make is paged_lion8bit else "device"
    for name in ("rows", "odd_tail"):
        assert restored.residual[name].sharding.memory_kind == kind
    assert restored.residual["small"].sharding.memory_kind == "device"
    problem.assert_in_place(restored, places)
    assert check_state(tx, p, restored).ok


def converted_from_a_checkpoint(state, tx, p, tmp_path, refusal):
    """A saved state as that of `tx`, which refuses it in these words unless it is converted."""
    problem.save(tmp_path / "saved", state)
    saved = problem.metadata(tmp_path / "saved")
    with pytest.raises(ValueError, match=f"{refusal}.*`convert=True` to `restore_target`"):
        restore_target(tx, p, saved)
    restored = problem.restore(tmp_path / "saved", restore_target(tx, p, saved, convert=True))
    return convert_state(restored, p, tx)


def test_a_state_without_residuals_begins_them_at_zero(tmp_path):
    before, tx = lion8bit(1e-3), with_residuals()
    p, state = trained(before)
    state_of_tx = convert_state(state, p, tx)
    assert_equal(state_of_tx, tx.init(p)._replace(
        count=state.count, mu=state.mu, mu_absmax=state.mu_absmax))  # fmt: skip
    assert_equal(full_precision(p, state_of_tx), jax.tree.map(jnp.float32, p))
    assert_equal(converted_from_a_checkpoint(state, tx, p, tmp_path, "no `residual`"), state_of_tx)


def test_residuals_are_left_behind_where_none_are_kept(tmp_path):
    before, tx = with_residuals(), lion8bit(1e-3, options=StateOptions(page_min_size=1000))
    p, state = trained(before)
    expected = state._replace(residual=None)
    assert_equal(convert_state(state, p, tx), expected)
    assert_equal(converted_from_a_checkpoint(state, tx, p, tmp_path, "has a `residual`"), expected)


@pytest.mark.parametrize("make", [lion32bit, paged_lion8bit])
def test_they_go_over_to_other_bits_and_memory(make):
    p, state = trained(with_residuals())
    tx = with_residuals(make)
    other = convert_state(state, p, tx)
    assert problem.bits(other.residual) == problem.bits(state.residual)
    problem.assert_in_place(other, problem.expected_places(tx, p))
    assert_equal(full_precision(p, other), full_precision(p, state))


def test_a_parameter_that_begins_anew_has_a_residual_of_zeros():
    tx = with_residuals()
    p, state = trained(tx)
    p["rows"] = jnp.concatenate([p["rows"], p["rows"][:4]])  # a longer vocabulary
    p["head"] = p["rows"][:, :256]
    del p["small"]
    with pytest.warns(UserWarning, match="'head'.*'rows'.*start at zero.*'small'.*dropped"):
        new = convert_state(state, p, tx, missing="fresh")
    assert problem.bits(new.residual["odd_tail"]) == problem.bits(state.residual["odd_tail"])
    for name in ("rows", "head"):
        assert new.residual[name].shape == p[name].shape and not new.residual[name].any()
    apply_fused(tx, p, p, new)


def test_a_parameter_of_another_dtype_begins_without():
    """To 32 bits there is nothing to keep beside it, and from there nothing was kept."""
    tx = with_residuals()
    p, state = trained(tx)
    q = {"rows": full_precision(p, state)["rows"], "odd_tail": p["odd_tail"],
         "small": p["small"].astype(jnp.bfloat16)}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = convert_state(state, q, tx)
    assert new.residual["rows"].shape == (1, 1) and new.residual["small"].shape == (33,)
    assert not new.residual["rows"].any() and not new.residual["small"].any()
    apply_fused(tx, q, q, new)


def test_residuals_of_another_dtype_are_refused_by_name():
    tx = with_residuals()
    p, state = trained(tx)
    cast = {**state.residual, "rows": state.residual["rows"].astype(jnp.float32)}
    with pytest.raises(ValueError, match=r"residual\['rows'\] has dtype float32.*int8"):
        convert_state(state._replace(residual=cast), p, tx)


@pytest.mark.parametrize(
    "wrong, found",
    [
        (np.zeros((16, 511), np.int8), r"\(16, 511\)"),
        (np.zeros((16, 512), np.float32), "float32"),
        (np.zeros((1, 1), np.int8), r"\(1, 1\)"),
    ],
    ids=["shape", "dtype", "stand-in"],
)
def test_check_state_finds_what_is_wrong_with_residuals(wrong, found):
    tx, p = with_residuals(), params()
    state = tx.init(p)
    assert check_state(tx, p, state).ok
    check = check_state(tx, p, state._replace(residual={**state.residual, "rows": wrong}))
    assert [fault.path for fault in check.faults] == ["residual/rows"]
    assert found.replace("\\", "") in check.faults[0].what
    (fault,) = check_state(tx, p, state._replace(residual=None)).faults
    assert fault.path == "residual" and "missing" in fault.what
    (fault,) = check_state(lion8bit(), p, state).faults
    assert fault.path == "residual" and "not kept" in fault.what


def test_a_report_counts_them():
    p = params()
    plain, with_them = (state_report(tx.init(p)) for tx in (lion8bit(1e-3), with_residuals()))
    size = p["rows"].size + p["odd_tail"].size
    assert with_them.by_dtype["int8"] == size + 1 and "int8" not in plain.by_dtype


def test_bitsandbytes_has_none_of_them():
    """What is exported has moments alone, and what is imported begins with zeros."""
    tx, plain = with_residuals(codec="dynamic"), lion8bit(options=StateOptions(codec="dynamic"))
    p, state = trained(tx)
    names = sorted(p)
    exported = to_bitsandbytes(state, names=names)
    expected = to_bitsandbytes(state._replace(residual=None), names=names)
    assert problem.bits(exported["state"]) == problem.bits(expected["state"])
    back = from_bitsandbytes(exported, p, tx, names=names)
    assert_equal(back.residual, tx.init(p).residual)
    assert_equal(back._replace(residual=None), from_bitsandbytes(exported, p, plain, names=names))
    apply_fused(tx, p, p, back)
