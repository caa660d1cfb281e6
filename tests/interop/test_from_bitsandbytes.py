"""What bitsandbytes saved is what an optimizer goes on from, whatever version saved it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from optax_lamblion import (
    StateOptions,
    from_bitsandbytes,
    lion8bit,
    lion32bit,
    paged_lion8bit,
    state_report,
)
from optax_lamblion._checkpoints.bitsandbytes.slots import our_codes, their_codes, their_map
from pallas_kernels import dequantize
from tests import oracles
from tests.interop import cuda_steps, loading, problem
from tests.interop.loading import imported

FILES = sorted(loading.NAMES)
MOMENTS = {"mu": "1", "nu": "2"}


@pytest.mark.parametrize("shape", [(256,), (8, 32), (1,), ()])
@pytest.mark.parametrize("signed", [True, False])
def test_a_code_has_the_same_value_here_and_there(signed, shape):
    theirs = np.arange(np.prod(shape, dtype=int), dtype=np.uint8).reshape(shape)
    ours = our_codes(theirs, signed)
    assert (type(ours), ours.shape, ours.dtype) == (np.ndarray, shape, np.uint8)
    np.testing.assert_array_equal(
        oracles.levels("dynamic", signed)[ours], oracles.bitsandbytes_map(signed)[theirs]
    )
    np.testing.assert_array_equal(their_codes(ours, signed), theirs)
    # Float32 arithmetic and a closed form of the map differ from it by two units.
    np.testing.assert_array_max_ulp(their_map(signed), oracles.bitsandbytes_map(signed), 2)


def test_zero_and_the_ends_of_the_signed_map_have_the_codes_that_are_documented():
    theirs, ours = [127, 128, 254, 255, 126, 0], [0, 1, 127, 128, 255, 129]
    np.testing.assert_array_equal(our_codes(np.uint8(theirs), signed=True), ours)


@pytest.mark.parametrize("name", FILES)
def test_codes_scales_and_counts_are_taken_over(name):
    p, state = imported(name)
    assert state.count == problem.STEPS
    for leaf, (_, saved) in loading.contents(loading.read(name), loading.NAMES[name]).items():
        for field, i in MOMENTS.items():
            if f"state{i}" not in saved:
                assert getattr(state, field, None) is None
                continue
            x = getattr(state, field)[leaf]
            if len(saved.get(f"qmap{i}", ())) == 524:
                continue  # decoded and stored again, as the next test says
            assert x.shape == p[leaf].shape
            expected = saved[f"state{i}"]
            if x.dtype == np.uint8:
                expected = loading.our_codes(expected, signed=i == "1")
            assert loading.same_bits(x, expected), (leaf, field)
            if x.dtype == np.uint8:
                scales = saved.get(f"absmax{i}", saved.get(f"max{i}"))
                assert loading.same_bits(getattr(state, f"{field}_absmax")[leaf], scales)


def test_codes_of_the_map_that_was_too_long_keep_their_values():
    """Of the second moments; their map ends at 0.093, and ours at 1."""
    name = "lamb8bit_long_map"
    _, state = imported(name)
    saved = loading.slots(loading.read(name))
    truth = saved["qmap2"][saved["state2"]] * saved["max2"]
    v = dequantize(
        state.nu["ragged"],
        state.nu_absmax["ragged"],
        block_size=None,
        codec="dynamic",
        signed=False,
    )
    # The scale is now the largest value itself, and each is the level nearest to it.
    y = truth.astype(np.float64) / truth.max()
    excess, gap = oracles.nearest_excess(y, state.nu["ragged"], "dynamic", False)
    assert np.max(excess) <= 1e-6
    assert np.all(np.abs(v - truth).ravel() <= (gap / 2 + 1e-6) * truth.max())
    assert np.all((np.asarray(v) > 0) == (truth > 0))


def judged_step(name, checkpoint, number, leaf):
    """One more step of bitsandbytes on CUDA, as its documentation has it."""
    entry = checkpoint["state"][number]
    p, g = problem.params()[leaf], problem.gradient(leaf, problem.STEPS)
    (group,) = [x for x in checkpoint["param_groups"] if number in x["params"]]
    given = dict(lr=group["lr"], betas=group["betas"], weight_decay=group["weight_decay"])
    before = cuda_steps.decode(entry, p.shape)
    block = before.block_size
    tables = [oracles.bitsandbytes_map(signed) for signed in (True, False)]
    if "lion" in name:
        if block is None:
            return cuda_steps.lion32(p, g, before, **given)
        return cuda_steps.lion8(p, g, before, table=tables[0], block_size=block, **given)
    given["eps"] = group["eps"]
    if block is None:
        return cuda_steps.lamb32(p, g, before, **given)
    return cuda_steps.lamb8(p, g, before, tables=tables, block_size=block, **given)


@pytest.mark.parametrize("name", [x for x in FILES if "percentile" not in x])
def test_one_more_step_is_that_of_cuda_within_a_code(name):
    checkpoint = loading.read(name)
    extra = {"max_unorm": 1.0} if "lamb" in name else {}
    tx = loading.optimizer(name, checkpoint, **extra)
    p, state = imported(name, tx)
    g = {leaf: jnp.asarray(problem.gradient(leaf, problem.STEPS)) for leaf in p}
    updates, after = jax.jit(tx.update)(g, state, p)
    for leaf, (number, _) in loading.contents(checkpoint, loading.NAMES[name]).items():
        judge = judged_step(name, checkpoint, number, leaf)
        for field, theirs in (("mu", judge.m), ("nu", judge.v)):
            if theirs is None:
                continue
            ours = np.asarray(getattr(after, field)[leaf])
            if theirs.codes is None:
                # A sum of two products, each factor rounded: a few units of the larger product.
                before = np.asarray(getattr(state, field)[leaf])
                largest = np.maximum(np.abs(before), np.abs(ours))
                assert np.all(np.abs(ours - theirs.value) <= 4 * 2.0**-24 * largest)
                continue
            absmax = np.asarray(getattr(after, f"{field}_absmax")[leaf]).ravel()
            if "long_map" in name and field == "nu":
                # Storing v under the right map moved it by up to half a gap, and its scale with it.
                np.testing.assert_allclose(absmax, theirs.absmax, rtol=0.004)
            else:
                np.testing.assert_allclose(absmax, theirs.absmax, rtol=4e-7, atol=1e-12)
            # In a block of zeros any code means zero.
            scale = oracles.scale_of(theirs.absmax, ours.shape, loading.block_size(name))
            ours = oracles.ranks(ours, "dynamic", field == "mu")  # neighbours differ by 1
            apart = np.abs(ours - theirs.codes.reshape(ours.shape).astype(int))
            assert apart[scale > 0].max() <= 1, (leaf, field)
            assert np.ptp(ours) > 100  # the codes say something
        if "lion" in name:
            # The sign is that of float32 numbers; where it hangs on a last bit, either will do.
            sure = np.abs(judge.decisive) > 1e-6 * np.abs(judge.decisive).max()
            new = np.asarray(p[leaf] + updates[leaf])
            np.testing.assert_allclose(new[sure], judge.p[sure], rtol=3e-7, atol=3e-7)
            assert sure.mean() > 0.7  # a block of zeros is not sure


def test_gradient_norms_go_on():
    name = "lion8bit_percentile"
    _, state = imported(name)
    for leaf, (_, saved) in loading.contents(loading.read(name), loading.NAMES[name]).items():
        assert loading.same_bits(state.gnorm_history[leaf], saved["gnorm_vec"])
        assert np.all(saved["gnorm_vec"] > 0)


def test_gradient_norms_that_are_left_behind_are_named():
    with pytest.warns(UserWarning, match="gradient norms of percentile clipping.*dropped"):
        _, state = imported("lion8bit_percentile", lion8bit(1e-3))
    assert state.gnorm_history is None


@pytest.mark.parametrize(
    "options",
    [dict(), dict(block_size=64), dict(codec="dynamic", block_size=2048), dict(codec="linear")],
    ids=["power", "power-64", "dynamic-2048", "linear"],
)
def test_other_layouts_hold_the_nearest_codes(options):
    options = StateOptions(**options)
    name = "lion8bit"
    _, state = imported(name, lion8bit(1e-3, options=options))
    for leaf, (_, saved) in loading.contents(loading.read(name), loading.NAMES[name]).items():
        if saved["state1"].dtype != np.uint8:
            assert loading.same_bits(state.mu[leaf], saved["state1"])
            continue
        codes = loading.our_codes(saved["state1"], signed=True)
        truth = oracles.decode(codes, saved["absmax1"], 256, "dynamic", True)
        absmax = oracles.block_absmax(truth, options.block_size)
        np.testing.assert_allclose(state.mu_absmax[leaf], absmax, rtol=4e-7)
        y = oracles.normalize(truth, absmax, options.block_size)
        excess, _ = oracles.nearest_excess(y, state.mu[leaf], options.codec, True)
        # Values are float32 here, so at a middle between two levels either is the nearest.
        assert np.max(excess) <= 1e-6


def test_8_bits_become_32_and_32_become_8():
    name = "lion8bit"
    _, state = imported(name, lion32bit(1e-3))
    saved = loading.slots(loading.read(name), 0)
    codes = loading.our_codes(saved["state1"], signed=True)
    truth = oracles.decode(codes, saved["absmax1"], 256, "dynamic", True)
    np.testing.assert_allclose(state.mu["matrix"], truth, rtol=4e-7, atol=0)
    options = StateOptions(min_8bit_size=1)
    _, state = imported("lion32bit", lion8bit(1e-3, options=options))
    assert {x.dtype for x in jax.tree.leaves(state.mu)} == {np.dtype(np.uint8)}


def test_axes_in_another_order_are_adapted():
    name = "lion8bit"
    names = ["dense/kernel", "ragged", "small", "other/kernel"]
    shapes = {"ragged": (4097,), "small": (33,), "dense": (96, 64), "other": (64, 96)}
    p = {
        x: {"kernel": jnp.zeros(s)} if x in ("dense", "other") else jnp.zeros(s)
        for x, s in shapes.items()
    }
    state = from_bitsandbytes(
        loading.read(name),
        p,
        lion32bit(1e-3),
        names=names,
        adapt=lambda path, x: x.T if path.endswith("kernel") else x,
    )
    _, straight = imported(name, lion32bit(1e-3))
    np.testing.assert_array_equal(state.mu["dense"]["kernel"], straight.mu["matrix"].T)
    np.testing.assert_array_equal(state.mu["other"]["kernel"], straight.mu["transposed"].T)


def test_what_adapt_leaves_alone_keeps_its_codes():
    _, state = imported("lion8bit", adapt=lambda path, x: x)
    _, straight = imported("lion8bit")
    assert jax.tree.all(jax.tree.map(loading.same_bits, state, straight))


def test_numbers_and_names_map_to_paths():
    name = "lion8bit_flat"
    checkpoint = loading.read(name)
    _, straight = imported(name)
    _, state = imported(name, names={0: "ragged", 1: "small"})
    assert jax.tree.all(jax.tree.map(loading.same_bits, state, straight))
    checkpoint["state"] = {"model.w": checkpoint["state"][0], "model.b": checkpoint["state"][1]}
    checkpoint["param_groups"][0]["params"] = ["model.w", "model.b"]
    names = {"model.w": "ragged", "model.b": "small"}
    _, state = imported(name, checkpoint=checkpoint, names=names)
    assert jax.tree.all(jax.tree.map(loading.same_bits, state, straight))


def test_lists_of_parameters_have_an_order():
    p = [jnp.zeros(4097), jnp.zeros(33)]
    state = from_bitsandbytes(loading.read("lion8bit_flat"), p, lion8bit(1e-3))
    assert [x.dtype for x in state.mu] == [np.uint8, np.float32]


def test_chains_masks_and_partitions_are_filled():
    name = "lion8bit_flat"
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(loading.optimizer(name), {"ragged": True, "small": True}),
        optax.trace(0.9),
    )
    p, state = imported(name, tx)
    _, straight = imported(name)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(p))
    assert jax.tree.all(jax.tree.map(loading.same_bits, state[1].inner_state, straight))
    labels = {"ragged": "a", "small": "b"}
    both = {"a": loading.optimizer(name), "b": loading.optimizer(name)}
    p, state = imported(name, optax.partition(both, labels))
    jax.jit(optax.partition(both, labels).update)(p, state, p)
    inner = state.inner_states["a"].inner_state
    assert loading.same_bits(inner.mu["ragged"], straight.mu["ragged"])


def test_bfloat16_parameters_get_float32_state():
    _, state = imported("lion8bit_flat", dtype=jnp.bfloat16)
    assert state.mu["small"].dtype == np.float32


def test_paged_state_goes_to_the_host():
    options = StateOptions(codec="dynamic", page_min_size=4096)
    p, state = imported("lion8bit", paged_lion8bit(1e-3, options=options))
    _, resident = imported("lion8bit")
    assert jax.tree.all(jax.tree.map(loading.same_bits, state, resident))
    fresh = paged_lion8bit(1e-3, options=options).init(p)
    kinds = state_report(fresh).by_memory_kind
    assert state_report(state).by_memory_kind == kinds and "pinned_host" in kinds


def test_state_goes_where_parameters_are():
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    p = {"transposed": jnp.zeros((96, 64))}
    p = jax.device_put(p, NamedSharding(mesh, P("fsdp")))
    options = StateOptions(codec="dynamic")
    checkpoint = loading.read("lion8bit_gpu_order")
    state = from_bitsandbytes(checkpoint, p, lion8bit(1e-3, options=options))
    assert state.mu["transposed"].sharding.is_equivalent_to(p["transposed"].sharding, 2)
    _, single = imported("lion8bit_gpu_order")
    assert jax.tree.all(jax.tree.map(loading.same_bits, state, single))


def test_parameters_may_be_shapes():
    p = jax.eval_shape(lambda: [jnp.zeros(4097), jnp.zeros(33)])
    state = from_bitsandbytes(loading.read("lion8bit_flat"), p, lion8bit(1e-3))
    assert state.mu[0].shape == (4097,)


def test_parameters_without_a_gradient_start_at_zero_when_told():
    with pytest.raises(ValueError, match="no state for parameter 'matrix'.*`allow_missing=True`"):
        imported("lion32bit", allow_missing=False)
    _, state = imported("lion32bit", allow_missing=True)
    assert not np.any(state.mu["matrix"]) and np.any(state.mu["small"])


def test_adam_is_imported_as_lamb():
    """Its entries are those of LAMB without the norm."""
    checkpoint = loading.read("lamb8bit_tensorwise")
    for number in checkpoint["state"]:
        loading.slots(checkpoint, number).pop("unorm_vec", None)
    _, state = imported("lamb8bit_tensorwise", checkpoint=checkpoint)
    _, straight = imported("lamb8bit_tensorwise")
    assert jax.tree.all(jax.tree.map(loading.same_bits, state, straight))


def test_the_cap_on_a_step_is_that_of_cuda():
    """`max_unorm`, without weight decay, which bitsandbytes keeps out of the norm."""
    name = "lamb32bit"
    checkpoint = loading.read(name)
    for group in checkpoint["param_groups"]:
        group["weight_decay"] = 0.0
    tx = loading.optimizer(name, checkpoint, max_unorm=1.0)
    p, state = imported(name, tx)
    g = {leaf: jnp.asarray(problem.gradient(leaf, problem.STEPS)) for leaf in p}
    updates, _ = jax.jit(tx.update)(g, state, p)
    for number, leaf in enumerate(loading.NAMES[name]):
        judge = judged_step(name, checkpoint, number, leaf)
        start = np.asarray(p[leaf], np.float64)
        way = judge.p - start
        # Both round p, theirs in the oracle and ours here; before that only float32 differs.
        np.testing.assert_allclose(
            updates[leaf], way, rtol=3e-6, atol=2.0**-23 * np.abs(start).max()
        )
        assert np.abs(way).max() > 1e-3
