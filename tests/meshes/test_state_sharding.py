"""`state_sharding`: where state goes, and what a step with it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding

from optax_lamblion import (
    StateOptions,
    apply_fused,
    clip_by_percentile,
    lamb8bit,
    lion8bit,
    lion32bit,
    paged_lion8bit,
    state_sharding,
)
from tests.meshes import problem
from tests.meshes.problem import P

MESH = problem.make_mesh("4x2")
BY_NAME = problem.shardings(MESH)


def specs_of(tree):
    return {name: x.spec for name, x in tree.items() if isinstance(x, NamedSharding)}


def test_state_follows_its_parameters():
    out = state_sharding(lamb8bit(percentile_clipping=5), problem.params(), BY_NAME)
    for slot in (out.mu, out.nu):
        for name, sharding in slot.items():
            expected = BY_NAME[name]
            assert sharding.is_equivalent_to(expected, len(problem.SHAPES[name]))
    for scales in (out.mu_absmax, out.nu_absmax):
        assert specs_of(scales) == {
            "matrix": P("fsdp", "tp"),
            "rows": P("fsdp"),
            "straddling": P("fsdp"),  # flat: 96 blocks
            "vector": P(("fsdp", "tp")),
            "small": P(),
            "stack": P(None, "fsdp", "tp"),
            "everywhere": P(),
        }
    assert out.count.spec == P()
    assert all(x.spec == P() for x in out.gnorm_history.values())
    assert {x.mesh for x in jax.tree.leaves(out)} == {MESH}


def test_shardings_come_from_arrays_shapes_or_a_prefix():
    tx, p = lion8bit(), problem.put(problem.params(), MESH)
    expected = state_sharding(tx, p, BY_NAME)
    assert state_sharding(tx, p) == expected
    shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in p.items()}
    assert state_sharding(tx, shapes) == expected
    everywhere = NamedSharding(MESH, P())
    assert all(x.spec == P() for x in jax.tree.leaves(state_sharding(tx, p, everywhere)))


def test_paged_state_is_in_host_memory():
    p = problem.params()
    out = state_sharding(paged_lion8bit(options=problem.PAGED), p, BY_NAME)
    for name in problem.SHAPES:
        kind = "device" if name == "small" else "pinned_host"
        assert out.mu[name].memory_kind == out.mu_absmax[name].memory_kind == kind
    assert out.count.memory_kind == "device"
    state = jax.jit(paged_lion8bit(options=problem.PAGED).init, out_shardings=out)(p)
    assert state.mu["matrix"].sharding == out.mu["matrix"]


def test_it_finds_state_inside_of_other_transformations():
    p = problem.params()
    mask = {name: name != "small" for name in p}
    labels = {name: "lion" if name == "matrix" else "rest" for name in p}
    tx = optax.chain(
        optax.trace(0.9),
        clip_by_percentile(5),
        optax.masked(lion8bit(1e-3), mask),
        optax.partition({"lion": lion32bit(1e-3), "rest": lamb8bit(1e-3)}, labels),
    )
    out = state_sharding(tx, p, BY_NAME)
    trace, clip, masked, split = out
    assert specs_of(trace.trace) == specs_of(masked.inner_state.mu) | {"small": P()}
    assert all(x.spec == P() for x in jax.tree.leaves(clip))
    assert masked.inner_state.mu["matrix"].spec == P("fsdp", "tp")
    assert split.inner_states["lion"].inner_state.mu["matrix"].spec == P("fsdp", "tp")
    assert split.inner_states["rest"].inner_state.nu_absmax["stack"].spec == P(None, "fsdp", "tp")
    state = jax.jit(tx.init, out_shardings=out)(problem.put(p, MESH))
    assert jax.tree.structure(state) == jax.tree.structure(out)


def test_a_single_array_is_a_tree_of_parameters():
    p = jax.ShapeDtypeStruct((64, 2048), jnp.float32)
    out = state_sharding(lion8bit(), p, NamedSharding(MESH, P("fsdp", "tp")))
    assert (out.mu.spec, out.mu_absmax.spec) == (P("fsdp", "tp"), P("fsdp", "tp"))


class TestOver:
    """ZeRO's first stage: parameters are whole along an axis over which their state is divided."""

    mesh = problem.make_mesh("2x2x2")

    @pytest.mark.parametrize("make", [lion8bit, lamb8bit])
    def test_the_step_is_the_same(self, make):
        tx = make(1e-3, weight_decay=0.1)
        plain = problem.Run(tx, self.mesh, steps=1)
        run = problem.Run(tx, self.mesh, steps=1, over="data")
        assert problem.differing(plain.state, run.state) == []
        if make is lion8bit:
            assert problem.differing(plain.params, run.params) == []

    def test_every_device_has_its_part_of_the_state(self):
        tx, p = lion8bit(1e-3), problem.put(problem.params(), self.mesh)
        out = state_sharding(tx, p, over="data")
        assert out.mu["matrix"].spec == P(("fsdp", "data"), "tp")
        assert out.mu["stack"].spec == P("data", "fsdp", "tp")
        assert out.mu["everywhere"].spec == P("data")
        # Four shards of 16 rows of 384 elements are whole blocks; eight of 8 rows are, too.
        assert out.mu["straddling"].spec == P(("fsdp", "data"))
        assert out.mu_absmax["straddling"].spec == P(("fsdp", "data"))
        assert out.mu["small"].spec == P()  # three rows do not go in two
        shard = out.mu["everywhere"].shard_shape(problem.SHAPES["everywhere"])
        assert shard == (4, 1024)

    def test_data_parallel_training_gathers_parameters_only(self):
        """What ZeRO's first stage costs: one all-gather of each parameter, none of state."""
        mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")), ("data",))
        p = {"w": jnp.ones((64, 1024))}
        everywhere = NamedSharding(mesh, P())
        p = jax.device_put(p, everywhere)
        tx = lion8bit(1e-3)
        for_state = state_sharding(tx, p, over="data")
        assert for_state.mu["w"].spec == P("data")
        step = jax.jit(
            lambda p, g, state: apply_fused(tx, p, g, state),
            donate_argnums=(0, 2),
            out_shardings=({"w": everywhere}, for_state),
        )
        state = jax.jit(tx.init, out_shardings=for_state)(p)
        text = step.lower(p, p, state).compile().as_text()
        gathers = [line for line in text.splitlines() if " all-gather(" in line]
        assert len(gathers) == 1 and "f32[64,1024]" in gathers[0]
        assert " all-reduce(" not in text


@pytest.mark.parametrize(
    "shardings, over, error, message",
    [
        (None, None, TypeError, "'matrix'.* needs a `jax.sharding.NamedSharding`"),
        (SingleDeviceSharding(jax.devices("cpu")[0]), None, TypeError, "Pass them as `shardings`"),
        ({"matrix": BY_NAME["matrix"]}, None, ValueError, "structure of the parameters"),
        (BY_NAME, "model", ValueError, "the axes 'fsdp', 'tp'"),
    ],
)
def test_bad_input(shardings, over, error, message):
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in problem.SHAPES.items()}
    if shardings is None:
        params = {"matrix": params["matrix"]}
    with pytest.raises(error, match=message):
        state_sharding(lion8bit(), params, shardings, over=over)


def test_no_parameters():
    with pytest.raises(ValueError, match="no parameters"):
        state_sharding(lion8bit(), {}, {})


def test_an_eager_state_is_where_the_compiled_one_is():
    """`tx.init` of parameters on a mesh, called without `jax.jit`."""
    for tx in (lamb8bit(percentile_clipping=5), paged_lion8bit(options=problem.PAGED)):
        p = problem.put(problem.params(), MESH)
        state = tx.init(p)
        for (path, x), expected in zip(
            jax.tree_util.tree_leaves_with_path(state),
            jax.tree.leaves(state_sharding(tx, p)),
            strict=True,
        ):
            assert x.sharding.is_equivalent_to(expected, x.ndim), path
            assert x.sharding.memory_kind == expected.memory_kind, path


@pytest.mark.parametrize("kind", problem.KINDS)
def test_the_second_step_is_no_other_program(kind):
    mesh = problem.make_mesh("4x2", kind)
    tx, traces = lamb8bit(1e-3), []

    @jax.jit
    def step(p, g, state):
        traces.append(1)
        return apply_fused(tx, p, g, state)

    p = problem.put(problem.params(), mesh)
    for state in (tx.init(p), jax.jit(tx.init, out_shardings=state_sharding(tx, p))(p)):
        traces.clear()
        step.clear_cache()
        new, state = step(p, p, state)
        step(new, p, state)
        assert len(traces) == 1


def test_small_blocks_divide_small_leaves():
    """Eligibility for 8 bits goes by the whole leaf, of which a shard may have few elements."""
    p = {"w": jax.ShapeDtypeStruct((4096,), jnp.float32)}
    by_eight = {"w": NamedSharding(MESH, P(("fsdp", "tp")))}
    tx = lion8bit(options=StateOptions(block_size=32))
    state = jax.eval_shape(tx.init, p)
    assert state.mu["w"].dtype == jnp.uint8
    assert state_sharding(tx, p, by_eight).mu_absmax["w"].spec == P(("fsdp", "tp"))


class TestMapParams:
    """`optax.tree.map_params`, by which others place states: what docs/meshes.md says of it."""

    p = problem.params()
    everywhere = NamedSharding(MESH, P())

    def map(self, tx, place, *rest):
        """What `place` makes of every array of a state and of its parameter's `rest`."""
        shapes = jax.eval_shape(tx.init, self.p)
        return optax.tree.map_params(
            tx, place, shapes, *rest, transform_non_params=lambda _: self.everywhere
        )

    def test_scales_in_rows_fit_the_spec_of_their_parameter(self):
        """As do all of a parameter that is whole everywhere: that is what `state_sharding` says."""
        tx = lamb8bit()
        theirs, ours = self.map(tx, lambda _, s: s, BY_NAME), state_sharding(tx, self.p, BY_NAME)
        shapes = jax.eval_shape(tx.init, self.p)
        rows = (jax.tree_util.tree_leaves_with_path(theirs), jax.tree.leaves(ours))
        for (path, sharding), expected, x in zip(*rows, jax.tree.leaves(shapes), strict=True):
            fits = "absmax['straddling']" not in jax.tree_util.keystr(path)  # they are flat
            assert fits == (len(sharding.spec) <= x.ndim)
            assert not fits or sharding.is_equivalent_to(expected, x.ndim), path

    @pytest.mark.parametrize(
        "clip, keep, named",
        [
            ({}, (), r"mu_absmax\['straddling'\]"),
            ({}, ("straddling", "rows"), r"mu_absmax\['rows'\]"),
            (dict(percentile_clipping=5), ("straddling",), r"gnorm_history\['matrix'\]"),
        ],
        ids=["flat scales", "what stands for scales", "norms"],
    )
    def test_what_does_not_fit_is_named_by_jax(self, clip, keep, named):
        tx = lion8bit(**clip, options=StateOptions(keep_32bit=lambda path: path in keep))
        by_name = {**BY_NAME, "straddling": self.everywhere} if keep else BY_NAME
        naive = self.map(tx, lambda _, s: s, by_name)
        with pytest.raises(ValueError, match=named):
            jax.jit(tx.init, out_shardings=naive).lower(self.p)

    def test_by_shape_all_of_them_fit(self):
        """Arrays of the parameter's shape follow it, others are everywhere: the same steps."""
        tx = lion8bit(1e-3, weight_decay=0.1)

        def place(x, p, sharding):
            return sharding if x.shape == p.shape else self.everywhere

        by_shape = self.map(tx, place, self.p, BY_NAME)
        assert by_shape.mu == BY_NAME
        assert set(by_shape.mu_absmax.values()) == {self.everywhere}
        p, g = (problem.put(x, MESH) for x in (self.p, problem.gradients(1)[0]))
        state = jax.jit(tx.init, out_shardings=by_shape)(p)
        step = jax.jit(
            lambda p, g, state: apply_fused(tx, p, g, state),
            out_shardings=(BY_NAME, by_shape),
            donate_argnums=2,
        )
        run = problem.Run(tx, MESH, steps=1)
        assert problem.differing((run.params, run.state), step(p, g, state)) == []
