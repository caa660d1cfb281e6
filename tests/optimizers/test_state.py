"""What a state holds: shapes, precisions, bytes, and which leaves are in 8 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_lamblion import StateOptions, state_report
from pallas_kernels import dequantize
from tests.optimizers import problem
from tests.variants import every

eight_bit = every(lambda v: v.bits == 8)


@every()
def test_state_has_the_documented_fields(v):
    state = v().init(problem.params())
    slots = [*v.slots, "nu_max"] if "nu" in v.slots else ["mu"]
    fields = ["count", *(name + suffix for name in slots for suffix in ("", "_absmax"))]
    assert list(state._fields) == [*fields, "gnorm_history", "layout", "skipped", "residual"]
    in_use = {"count", *v.slots} | ({"layout"} if v.bits == 8 else set())
    in_use |= {f"{slot}_absmax" for slot in v.slots if v.bits == 8}
    assert {name for name, x in state._asdict().items() if x is not None} == in_use
    assert state.count.dtype == np.int32 and state.count.shape == ()


@every(lambda v: "nu" in v.slots)
def test_amsgrad_keeps_a_third_slot(v):
    state = v(amsgrad=True).init(problem.params())
    problem.assert_equal(state.nu_max, state.nu)
    problem.assert_equal(state.nu_max_absmax, state.nu_absmax)


@eight_bit
def test_codes_and_scales_have_the_documented_shapes(v):
    shapes = {
        "rows": ((16, 512), (16, 2)),
        "one_row": ((4096,), (16,)),
        "odd_tail": ((4097,), (17,)),
        "four_d": ((2, 3, 5, 144), (17,)),
        "four_d_rows": ((2, 2, 4, 256), (2, 2, 4, 1)),
        "small": ((5, 7), (1, 1)),  # one unused number
        "scalar": ((), ()),
    }
    p = problem.tree(0, shapes={name: shape for name, (shape, _) in shapes.items()})
    for options, flat in [({}, None), (dict(block_wise=False), (1,))]:
        state = v(**options).init(p)
        for slot in v.slots:
            for name, (shape, scales) in shapes.items():
                codes, absmax = getattr(state, slot)[name], getattr(state, f"{slot}_absmax")[name]
                eight = name not in ("small", "scalar")
                assert codes.shape == shape
                assert codes.dtype == (np.uint8 if eight else np.float32)
                assert absmax.shape == (flat if flat and eight else scales)
                assert absmax.dtype == np.float32


@eight_bit
@pytest.mark.parametrize("codec", ["power", "dynamic", "linear"])
def test_fresh_state_is_zero_whatever_the_scales_hold(v, codec):
    state = v(options=StateOptions(codec=codec)).init(problem.params())
    for slot in v.slots:
        codes = np.asarray(getattr(state, slot)["rows"])
        absmax = np.ones_like(getattr(state, f"{slot}_absmax")["rows"])
        values = dequantize(codes, absmax, codec=codec, signed=slot == "mu")
        np.testing.assert_array_equal(values, 0)


@eight_bit
@pytest.mark.parametrize("where", ["argument", "options"])
def test_min_8bit_size_is_the_smallest_size_in_8_bits(v, where):
    p = problem.tree(0, shapes={"below": (99,), "at": (100,), "empty": (0, 3)})
    for size, codes in [(100, {"at"}), (99, {"at", "below"}), (0, {"at", "below"}), (101, set())]:
        arguments = dict(options=StateOptions(min_8bit_size=size))
        state = v(**(arguments if where == "options" else dict(min_8bit_size=size))).init(p)
        assert {name for name, x in state.mu.items() if x.dtype == np.uint8} == codes


@eight_bit
def test_the_argument_goes_before_the_option(v):
    p = problem.tree(0, shapes={"w": (100,)})
    state = v(min_8bit_size=100, options=StateOptions(min_8bit_size=101)).init(p)
    assert state.mu["w"].dtype == np.uint8


NESTED = {"encoder": {"embed": (64, 64), "dense": [(64, 65), (64, 66)]}, "head": (64, 67)}
EMBED, DENSE_0, DENSE_1, HEAD = "encoder/embed", "encoder/dense/0", "encoder/dense/1", "head"
KEEP = {
    "predicate": (lambda path: path in (EMBED, DENSE_1), {EMBED, DENSE_1}),
    "substring": (lambda path: "dense" in path, {DENSE_0, DENSE_1}),
    "tree": (
        {"encoder": {"embed": False, "dense": [True, False]}, "head": True},
        {DENSE_0, HEAD},
    ),
    "prefix": ({"encoder": True, "head": False}, {EMBED, DENSE_0, DENSE_1}),
    "all": (True, {EMBED, DENSE_0, DENSE_1, HEAD}),
    "none": (False, set()),
}


@eight_bit
@pytest.mark.parametrize("kind", KEEP)
def test_keep_32bit_names_leaves_by_path_or_tree(v, kind):
    keep, expected = KEEP[kind]
    p = jax.tree.map(jnp.zeros, NESTED, is_leaf=lambda x: isinstance(x, tuple))
    tx = v(options=StateOptions(keep_32bit=keep))
    state = tx.init(p)
    for slot in v.slots:
        kept = {
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, x in jax.tree.leaves_with_path(getattr(state, slot))
            if x.dtype == np.float32
        }
        assert kept == expected
    problem.assert_same_kinds(jax.eval_shape(tx.update, p, state, p), (p, state))


@every()
def test_a_step_changes_no_leaf_s_precision(v):
    tx = v(min_8bit_size=0)
    state = v().init(problem.params())
    # State made with other thresholds is stepped as it is: the leaf's own dtype decides.
    updates, new = tx.update(problem.grads(), state, problem.params())
    problem.assert_same_kinds(new, state)


BYTES = {8: 1 + 4 / 256, 32: 4}  # a slot of a parameter: code and scale of 256, or a float32


@every()
def test_state_costs_the_documented_bytes(v):
    p = {"w": jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)}
    report = state_report(jax.eval_shape(v().init, p))
    scalars = 4 if v.bits == 32 else 8  # the count; in 8 bits the layout, too
    assert report.nbytes - scalars == len(v.slots) * BYTES[v.bits] * 4096**2
    assert round(BYTES[8], 3) == 1.016 and round(2 * BYTES[8], 3) == 2.031


@every()
def test_state_report_counts_every_array(v):
    state = v(percentile_clipping=5).init(problem.params())
    report = state_report(state)
    arrays = jax.tree.leaves(state)
    assert report.nbytes == sum(x.nbytes for x in arrays)
    assert sum(report.by_dtype.values()) == sum(report.by_memory_kind.values()) == report.nbytes
    assert [leaf.nbytes for leaf in report.leaves] == [x.nbytes for x in arrays]
    assert {"count", "mu/rows", "gnorm_history/small"} <= {leaf.path for leaf in report.leaves}
    assert state_report(jax.eval_shape(lambda: state)).nbytes == report.nbytes
    table = str(report)
    assert f"{report.nbytes:,}" in table and "mu/odd_tail" in table


def test_state_report_accepts_any_optax_state():
    p = problem.params()
    adam = state_report(optax.adam(1e-3).init(p))
    assert adam.nbytes == 4 + 2 * sum(x.nbytes for x in jax.tree.leaves(p))
    assert state_report(()).nbytes == 0
