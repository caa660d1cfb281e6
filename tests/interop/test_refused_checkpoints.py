"""Checkpoints that are damaged, or of something else, are refused with the entry named."""

import jax
import numpy as np
import optax
import pytest

from optax_lamblion import lamb8bit
from tests.interop import loading
from tests.interop.loading import imported


def set_slot(key, value):
    def change(checkpoint):
        slots = loading.slots(checkpoint)
        if value is None:
            del slots[key]
        else:
            slots[key] = value(slots.get(key))

    return change


def other_step(checkpoint):
    checkpoint["state"][1]["step"] = 7


def extra_entry(checkpoint):
    checkpoint["state"][9] = checkpoint["state"][0]


def no_entry(checkpoint):
    del checkpoint["state"][2]


def group_without_params(checkpoint):
    del checkpoint["param_groups"][0]["params"]


def with_nan(x):
    x = x.copy()
    x[3] = np.nan
    return x


DAMAGED = {
    "a slot is missing": (set_slot("state1", None), "state.0 (matrix)", "lacks 'state1'"),
    "a map is missing": (set_slot("qmap1", None), "state.0 (matrix)", "lacks 'qmap1'"),
    "scales are missing": (set_slot("absmax1", None), "state.0 (matrix)", "lacks 'max1'"),
    "the step is missing": (lambda c: c["state"][0].pop("step"), "state.0 (matrix)", "'step'"),
    "scales are too few": (
        set_slot("absmax1", lambda x: x[:-1]),
        "state.0 (matrix).absmax1", "shape (23,)", "6144", "`block_size`",
    ),
    "a slot is too short": (
        set_slot("state1", lambda x: x[:, :64]),
        "state.0 (matrix).absmax1", "(24,)", "4096",
    ),
    "a slot is another's": (
        set_slot("state1", lambda x: x.T),
        "state.0 (matrix).state1", "(96, 64)", "(64, 96)", "`adapt=",
    ),
    "a slot has another dtype": (
        set_slot("state1", lambda x: x.astype(np.int32)),
        "state.0 (matrix).state1", "int32",
    ),
    "scales have another dtype": (
        set_slot("absmax1", lambda x: x.astype(np.int32)),
        "state.0 (matrix).absmax1", "int32",
    ),
    "a map is another one": (
        set_slot("qmap1", lambda x: x * np.float32(1.001)),
        "state.0 (matrix).qmap1", "code 0", "not the map",
    ),
    "a map is too short": (set_slot("qmap1", lambda x: x[:16]), "state.0 (matrix).qmap1", "(16,)"),
    "a scale is infinite": (
        set_slot("absmax1", lambda x: np.where(np.arange(x.size) == 2, np.inf, x)),
        "state.0 (matrix).absmax1", "NaN or infinite", "earlier",
    ),
    "a scale is negative": (
        set_slot("absmax1", lambda x: -x),
        "state.0 (matrix).absmax1", "negative",
    ),
    "an entry is of another optimizer": (
        set_slot("exp_avg", lambda _: np.zeros(3)),
        "state.0 (matrix)", "'exp_avg'",
    ),
    "a second moment in a Lion": (
        set_slot("state2", lambda _: np.zeros((64, 96))),
        "state.0 (matrix)", "`state2`", "`lamb`",
    ),
    "steps differ": (other_step, "'matrix' has made 5 steps", "'ragged' 7", "`optax.partition`"),
    "an entry has no name": (extra_entry, "state for 9", "`names`"),
    "an entry is missing": (no_entry, "no state for parameter 'small'", "`allow_missing=True`"),
    "groups do not list parameters": (group_without_params, "`param_groups`", "`params`"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_checkpoints_are_refused_by_name(case):
    change, *fragments = DAMAGED[case]
    checkpoint = loading.read("lion8bit")
    change(checkpoint)
    with pytest.raises(ValueError) as caught:
        imported("lion8bit", checkpoint=checkpoint)
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)


def test_float32_slots_that_are_not_finite_are_refused():
    checkpoint = loading.read("lion32bit")
    slots = loading.slots(checkpoint, 0)
    slots["state1"] = with_nan(slots["state1"])
    with pytest.raises(ValueError, match=r"state.0 \(small\).state1.*NaN"):
        imported("lion32bit", checkpoint=checkpoint)


NAMES = loading.NAMES["lion8bit"]
ARGUMENTS = {
    "no names": (dict(names=None), TypeError, "`names`", "'matrix', 'ragged'"),
    "too few names": (dict(names=NAMES[:3]), ValueError, "4 parameters", "`names` has 3"),
    "a name twice": (
        dict(names=["matrix", "ragged", "small", "matrix"]), ValueError, "'matrix' more than once",
    ),
    "a name that is no parameter": (
        dict(names=[*NAMES[:3], "other"], allow_missing=True), ValueError, "'other'", "state for 3",
    ),
    "names as one string": (dict(names="matrix"), TypeError, "list of paths", "'matrix'"),
    "an optimizer of Optax": (dict(tx=optax.adam(1e-3)), TypeError, "`tx`", "optax_lamblion"),
    "a LAMB": (dict(tx=lamb8bit(1e-3)), ValueError, "state.0 (matrix)", "lacks 'state2'"),
    "amsgrad": (dict(tx=lamb8bit(1e-3, amsgrad=True)), ValueError, "`amsgrad`"),
    "a key for a dict": (
        dict(checkpoint={"state": {}, "param_groups": []}, key="optimizer"), ValueError, "`key`",
    ),
    "not a checkpoint": (dict(checkpoint=[1, 2]), TypeError, "`checkpoint`", "list"),
    "a dict of something else": (dict(checkpoint={"a": 1}), ValueError, "`param_groups`"),
    "another block size": (
        dict(block_size=128), ValueError, "state.0 (matrix).absmax1", "(24,)", "(48,)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_do_not_fit_are_named(case):
    arguments, error, *fragments = ARGUMENTS[case]
    with pytest.raises(error) as caught:
        imported("lion8bit", **arguments)
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)


def test_nothing_is_changed_by_an_import_that_fails():
    checkpoint = loading.read("lion8bit")
    other_step(checkpoint)
    before = jax.tree.map(np.copy, checkpoint)
    with pytest.raises(ValueError, match="steps"):
        imported("lion8bit", checkpoint=checkpoint)
    assert jax.tree.all(jax.tree.map(loading.same_bits, checkpoint, before))
