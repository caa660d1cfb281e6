"""Moments in another layout are what the old codes meant, stored as the new layout stores best.

The judge is NumPy in float64: it decodes the old state, and looks at all levels of the new codec
for the nearest one.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_lamblion import (
    StateOptions,
    convert_state,
    lamb,
    lamb8bit,
    lion,
    lion8bit,
)
from tests import oracles
from tests.checkpoints import problem
from tests.variants import small_pages

SHAPES = {
    "rows": (16, 512),  # the scales have the parameter's rank
    "straddling": (17, 300),  # an odd size, in blocks that straddle rows
    "zeros": (4096,),
    "small": (33,),  # too small for 8 bits
}
ULP = 2.0**-23
# A level of the power codec is up to seven roundings in float32, and its scale is one more.
DECODING = 8 * ULP
# What is stored is the quotient of two such values, so it may be off by twice as much, and the
# distance to a level on either side by as much again in opposite directions. No gap between two
# levels is smaller than 1/255 of them.
TIE = 2 * (2 * DECODING) * 255


class Layout(NamedTuple):
    """How a state is stored: in 32 bits without a codec."""

    codec: str | None = None
    block: int | None = None

    def __str__(self):
        return "32 bits" if self.codec is None else f"{self.codec}-{self.block or 'tensor'}"

    def optimizer(self, family, paged=False, **kwargs):
        options = StateOptions()
        if self.codec is not None:
            options = StateOptions(codec=self.codec, block_size=self.block or 256)
            kwargs |= dict(bits=8, block_wise=self.block is not None)
        if paged:
            options = small_pages(options)
        return {"lion": lion, "lamb": lamb}[family](options=options, paged=paged, **kwargs)


LAYOUTS = [Layout(), *(Layout(c, b) for c in oracles.CODECS for b in (64, 256, None))]
FAMILIES = {"lion": ("mu",), "lamb": ("mu", "nu")}


@functools.cache
def params(dtype=jnp.float32):
    return {name: jnp.ones(shape, dtype) for name, shape in SHAPES.items()}


@functools.cache
def state_in(layout, family, **kwargs):
    """A state in that layout with something in it; the momentum of one leaf is zero."""
    tx = layout.optimizer(family, **kwargs)
    state = problem.filled(tx.init(params()), seed=LAYOUTS.index(layout))
    zero = tx.init(params())
    for name in ("mu", "nu", "nu_max"):
        if getattr(state, name, None) is not None:
            getattr(state, name)["zeros"] = getattr(zero, name)["zeros"]
    return state


def meant(layout, state, name, leaf):
    """What is stored of a leaf, in float64."""
    x = np.asarray(getattr(state, name)[leaf])
    if x.dtype != np.uint8:
        return x.astype(np.float64)
    absmax = np.asarray(getattr(state, f"{name}_absmax")[leaf])
    return oracles.decode(x, absmax, layout.block, layout.codec, name == "mu")


def assert_stored_well(values, layout, state, name, leaf):
    """A leaf of a state is `values`, as its layout stores them best."""
    x = np.asarray(getattr(state, name)[leaf])
    if x.dtype != np.uint8:
        np.testing.assert_allclose(x, values, rtol=DECODING, atol=0)
        return
    absmax = np.asarray(getattr(state, f"{name}_absmax")[leaf])
    largest = oracles.block_absmax(values, layout.block)
    np.testing.assert_allclose(absmax, largest, rtol=DECODING, atol=0)
    signed = name == "mu"
    y = oracles.normalize(values, absmax, layout.block).ravel()
    codes, ties = oracles.nearest(y, layout.codec, signed, tie=TIE)
    if not signed:  # only zero is stored as zero
        codes = np.where((y > 0) & (codes == 0), 1, codes)
        assert ((x.ravel() == 0) == (values.ravel() == 0)).all()
    places = (oracles.ranks(c, layout.codec, signed) for c in (codes, x.ravel()))
    apart = np.abs(np.subtract(*places))
    assert (apart <= ties).all(), f"{np.sum(apart > ties)} codes of {name}[{leaf!r}]"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("to", LAYOUTS, ids=str)
def test_from_every_layout(to, family):
    tx = to.optimizer(family)
    for layout in LAYOUTS:
        if layout == to:
            continue
        old = state_in(layout, family)
        new = convert_state(old, params(), tx)
        assert jax.tree.structure(new) == jax.tree.structure(tx.init(params()))
        assert problem.structs(new) == problem.structs(tx.init(params()))
        assert new.count == old.count == 1234
        for name, leaf in itertools.product(FAMILIES[family], SHAPES):
            assert_stored_well(meant(layout, old, name, leaf), to, new, name, leaf)


def test_the_judge_sees_a_code_that_is_not_the_nearest():
    to = Layout("power", 256)
    new = convert_state(state_in(Layout(), "lamb"), params(), to.optimizer("lamb"))
    old = state_in(Layout(), "lamb")
    for name in FAMILIES["lamb"]:
        values = meant(Layout(), old, name, "rows")
        assert_stored_well(values, to, new, name, "rows")
        wrong = np.array(getattr(new, name)["rows"])
        wrong[3, 5] += 1 if wrong[3, 5] < 255 else -1
        changed = new._replace(**{name: {**getattr(new, name), "rows": wrong}})
        with pytest.raises(AssertionError, match="1 codes"):
            assert_stored_well(values, to, changed, name, "rows")


@pytest.mark.parametrize("paged", [False, True], ids=["resident", "paged"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_same_layout_is_passed_on_without_a_copy(layout, family, paged):
    old = state_in(layout, family, paged=paged)
    new = convert_state(old, params(), layout.optimizer(family, paged))
    assert (new.mu["rows"].sharding.memory_kind == "pinned_host") == paged
    assert problem.bits(new) == problem.bits(old)
    for name in FAMILIES[family]:
        assert problem.addresses(getattr(new, name)) == problem.addresses(getattr(old, name))
    if layout.codec is not None:
        for name, leaf in itertools.product(FAMILIES[family], ("rows", "straddling", "zeros")):
            scales = [getattr(x, f"{name}_absmax")[leaf] for x in (new, old)]
            assert problem.addresses(scales[0]) == problem.addresses(scales[1])


WITH_BOTH_ENDS = [x for x in LAYOUTS if x.codec in ("power", "linear")]
"""The dynamic map lacks -1, so a scale shrinks when its largest value is decoded."""


@pytest.mark.parametrize("layout", WITH_BOTH_ENDS, ids=str)
def test_there_and_back_is_where_it_was(layout):
    narrow = convert_state(state_in(Layout(), "lamb"), params(), layout.optimizer("lamb"))
    wide = convert_state(narrow, params(), Layout().optimizer("lamb"))
    again = convert_state(wide, params(), layout.optimizer("lamb"))
    for name in FAMILIES["lamb"]:
        assert problem.bits(getattr(again, name)) == problem.bits(getattr(narrow, name))
        scales = [getattr(x, f"{name}_absmax") for x in (again, narrow)]
        # XLA may multiply by 1/255 instead of dividing by 255.
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=ULP, atol=0), *scales)


def test_tiny_second_moments_become_the_first_level_and_large_ones_the_last():
    """Over more decades in every block than a codec has."""
    wide = lamb().init(params())
    decades = np.geomspace(1e-37, 2.0**126, 64).astype(np.float32)
    wide.nu["rows"] = jnp.asarray(np.tile(decades, SHAPES["rows"][1] // 64 * SHAPES["rows"][0]))
    wide.nu["rows"] = wide.nu["rows"].reshape(SHAPES["rows"])
    for layout in LAYOUTS[1:]:
        new = convert_state(wide, params(), layout.optimizer("lamb"))
        codes = np.asarray(new.nu["rows"])
        assert codes.min() == 1 and codes.max() == 255
        assert np.isfinite(new.nu_absmax["rows"]).all()


def test_a_maximum_and_norms_are_converted_too():
    kwargs = dict(amsgrad=True, percentile_clipping=5)
    old = state_in(Layout("power", 256), "lamb", **kwargs)
    to = Layout("linear", 64)
    new = convert_state(old, params(), to.optimizer("lamb", **kwargs))
    assert problem.bits(new.gnorm_history) == problem.bits(old.gnorm_history)
    for leaf in SHAPES:
        values = meant(Layout("power", 256), old, "nu_max", leaf)
        assert_stored_well(values, to, new, "nu_max", leaf)


def test_norms_start_anew_where_there_were_none():
    tx = lion8bit(1e-3, percentile_clipping=5)
    state = convert_state(state_in(Layout("power", 256), "lion"), params(), tx)
    assert all(not x.any() for x in jax.tree.leaves(state.gnorm_history))
    _, state = tx.update(params(), state, params())
    for leaf, norms in state.gnorm_history.items():  # of ones, the first in every place
        assert (norms == math.prod(SHAPES[leaf])).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_leaves_change_their_precision_one_by_one(family):
    to = Layout("power", 256)
    old = state_in(to, family)
    make = {"lion": lion8bit, "lamb": lamb8bit}[family]
    tx = make(options=StateOptions(keep_32bit=lambda path: path == "rows"), min_8bit_size=10)
    new = convert_state(old, params(), tx)
    assert problem.structs(new) == problem.structs(tx.init(params()))
    for name in FAMILIES[family]:
        assert getattr(new, name)["rows"].dtype == np.float32
        assert getattr(new, name)["small"].dtype == np.uint8
        for leaf in ("rows", "small"):
            assert_stored_well(meant(to, old, name, leaf), to, new, name, leaf)
        assert problem.bits(getattr(new, name)["straddling"]) == problem.bits(
            getattr(old, name)["straddling"]
        )


def test_parameters_in_bfloat16_have_the_same_state():
    old, tx = state_in(Layout(), "lamb"), lamb8bit()
    new = convert_state(old, params(jnp.bfloat16), tx)
    assert problem.bits(new) == problem.bits(convert_state(old, params(), tx))


@pytest.mark.parametrize("donated", [False, True], ids=["kept", "donated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_under_jit_it_is_the_same(family, donated):
    old = jax.tree.map(jnp.copy, state_in(Layout(), family))
    for to in (Layout(), Layout("power", 256), Layout("dynamic", None)):
        tx = to.optimizer(family)
        expected = problem.bits(convert_state(old, params(), tx))
        convert = jax.jit(
            lambda state, tx=tx: convert_state(state, params(), tx),
            donate_argnums=0 if donated else (),
        )
        new = convert(jax.tree.map(jnp.copy, old))
        assert problem.bits(new) == expected
        assert jax.tree.structure(new) == jax.tree.structure(tx.init(params()))
