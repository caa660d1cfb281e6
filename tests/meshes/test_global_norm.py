"""`clip_by_global_norm` on meshes: the norm is that of whole gradients, by one all-reduce."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from optax_lamblion import StateOptions, apply_fused, clip_by_global_norm, lamb, lamb8bit, lion8bit
from tests.meshes import problem
from tests.meshes.problem import P

by_kind = pytest.mark.parametrize("kind", problem.KINDS)
G = problem.gradients(1)[0]
NORM = float(np.linalg.norm([np.linalg.norm(g) for g in G.values()]))
MAX_NORM = NORM / 7


def updates_of(tx, g, state=None):
    return tx.update(g, tx.init(g) if state is None else state)[0]


EXPECTED = updates_of(optax.clip_by_global_norm(MAX_NORM), G)


def assert_clipped(updates):
    """Those of Optax on one device, but for the order in which a mesh adds up squares."""
    for name, x in updates.items():
        np.testing.assert_allclose(x, EXPECTED[name], rtol=2.0**-20, err_msg=name)


@by_kind
@pytest.mark.parametrize("shape", problem.MESHES)
def test_updates(shape, kind):
    tx, mesh = clip_by_global_norm(MAX_NORM), problem.make_mesh(shape, kind)
    g = problem.put(G, mesh)
    compiled = jax.jit(functools.partial(updates_of, tx)).lower(g).compile()
    assert compiled.as_text().count(" all-reduce(") == 1
    updates = compiled(g)
    assert_clipped(updates)
    for name, x in updates.items():
        assert x.sharding.is_equivalent_to(g[name].sharding, x.ndim)


@by_kind
def test_eager_mapped_and_differentiated(kind):
    tx = clip_by_global_norm(MAX_NORM)
    g = problem.put(G, problem.make_mesh("4x2", kind))
    assert_clipped(updates_of(tx, g))
    two = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), g)
    out = jax.jit(jax.vmap(functools.partial(updates_of, tx)))(two)
    assert_clipped({name: x[1] for name, x in out.items()})  # both have the norm of the limit

    def loss(g, clip):
        return sum(jnp.sum(jnp.sin(7 * x)) for x in updates_of(clip(MAX_NORM), g).values())

    ours = jax.jit(jax.grad(functools.partial(loss, clip=clip_by_global_norm)))(g)
    optaxs = jax.grad(functools.partial(loss, clip=optax.clip_by_global_norm))(G)
    for name, x in ours.items():
        np.testing.assert_allclose(x, optaxs[name], rtol=1e-4, atol=1e-5)


def chained(make, **kwargs):
    clip = clip_by_global_norm(MAX_NORM)
    return optax.chain(clip, make(1e-3, weight_decay=0.1, **kwargs))


@by_kind
@pytest.mark.parametrize("clips", [{}, dict(percentile_clipping=5)], ids=["", "percentile"])
@pytest.mark.parametrize("make", [lion8bit, lamb])
def test_steps(make, clips, kind):
    """LAMB's norms depend on the clip and cannot share its all-reduce; percentiles do share it."""
    tx = chained(make, **clips)
    alone, run = problem.Run(tx), problem.Run(tx, problem.make_mesh("4x2", kind))
    for name in problem.SHAPES:
        # A factor that differs in its last digits.
        np.testing.assert_allclose(run.params[name], alone.params[name], rtol=1e-5, atol=1e-6)
        if clips:
            ours, other = (x.state[1].gnorm_history[name] for x in (run, alone))
            np.testing.assert_allclose(ours, other, rtol=2.0**-20)
    assert run.collectives == {"all-reduce": 1 if make is lion8bit else 2}
    assert run.copies(at_least=512) == []


@by_kind
def test_scaled_gradients(kind):
    """The scale is a number on every device."""
    tx, mesh = chained(lion8bit), problem.make_mesh("4x2", kind)
    p, g = problem.params(), jax.tree.map(lambda x: 8 * x, G)

    def step(place, scale):
        run = jax.jit(lambda p, g, state, scale: apply_fused(tx, p, g, state, grad_scale=scale))
        return run(place(p), place(g), tx.init(place(p)), scale)[0]

    expected = apply_fused(tx, p, G, tx.init(p))[0]
    out = step(lambda x: problem.put(x, mesh), jnp.float32(0.125))
    for name, x in out.items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-6)


class TestShardMap:
    def clipped(self, norm_axes, check_vma, mesh=None, axis_names=frozenset()):
        mesh = mesh or problem.make_mesh()
        tx = clip_by_global_norm(MAX_NORM, norm_axes=norm_axes)
        axis_names = axis_names or frozenset(mesh.axis_names)

        def manual(spec):
            entries = ((x,) if isinstance(x, str) else x or () for x in spec)
            return P(*(tuple(n for n in names if n in axis_names) or None for names in entries))

        specs = {name: manual(spec) for name, spec in problem.SPECS.items()}
        run = jax.shard_map(
            functools.partial(updates_of, tx),
            mesh=mesh,
            in_specs=(specs,),
            out_specs=specs,
            check_vma=check_vma,
            axis_names=axis_names,
        )
        return jax.jit(run)(problem.put(G, mesh))

    def test_types_say_what_is_divided(self):
        assert_clipped(self.clipped(None, True))
        assert_clipped(self.clipped(None, True, axis_names=frozenset({"fsdp"})))

    def test_without_types_partition_specs_do(self):
        assert_clipped(self.clipped(problem.SPECS, False))

    def test_names_count_what_is_whole_on_every_device(self):
        """As documented: they are for gradients that are divided alike."""
        times = dict.fromkeys(G, 1) | dict(rows=2, straddling=2, small=8, everywhere=8)
        norm = np.sqrt(sum(n * float(jnp.sum(G[name] ** 2)) for name, n in times.items()))
        out = self.clipped(("fsdp", "tp"), False)
        np.testing.assert_allclose(out["matrix"], G["matrix"] * (MAX_NORM / norm), rtol=1e-5)

    def test_without_both_it_is_refused(self):
        with pytest.raises(ValueError, match=r'for example `norm_axes=\("fsdp",\)`'):
            self.clipped(None, False)

    def test_data_parallel_training_in_pmap(self):
        tx = clip_by_global_norm(MAX_NORM, norm_axes=())
        many = jax.tree.map(lambda x: jnp.stack([x] * 8), G)
        out = jax.pmap(functools.partial(updates_of, tx), axis_name="d")(many)
        assert_clipped(jax.tree.map(lambda x: x[3], out))

    def test_a_fused_step(self):
        mesh = problem.make_mesh()
        options = StateOptions(norm_axes=("fsdp", "tp"))
        clip = clip_by_global_norm(MAX_NORM, norm_axes=problem.SPECS)
        tx = optax.chain(clip, lion8bit(1e-3, weight_decay=0.1, options=options))

        def step(p, g):
            return apply_fused(tx, p, g, tx.init(p))[0]

        specs = (problem.SPECS,) * 2
        run = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
        out = jax.jit(run)(problem.put(problem.params(), mesh), problem.put(G, mesh))
        tx = chained(lion8bit)
        expected = apply_fused(tx, problem.params(), G, tx.init(problem.params()))[0]
        for name, x in out.items():
            np.testing.assert_allclose(x, expected[name], rtol=1e-5, atol=1e-6)


def test_axes_of_both_kinds():
    devices = np.array(jax.devices("cpu")).reshape(4, 2)
    mesh = Mesh(devices, ("fsdp", "tp"), axis_types=(AxisType.Explicit, AxisType.Auto))
    run = jax.jit(functools.partial(updates_of, clip_by_global_norm(MAX_NORM)))
    assert_clipped(run(problem.put(G, mesh)))


def test_gradients_on_two_meshes_are_refused():
    places = [NamedSharding(problem.make_mesh(shape), P("fsdp")) for shape in ("4x2", "2x2x2")]
    g = {str(i): jax.device_put(jnp.ones(64), place) for i, place in enumerate(places)}
    with pytest.raises(ValueError, match="Leaf '1' is on a mesh with axes"):
        updates_of(clip_by_global_norm(1.0), g)


@by_kind
def test_a_norm_that_is_no_number_is_none_anywhere(kind):
    mesh, bad = problem.make_mesh("4x2", kind), G["small"].at[1, 1].set(np.nan)
    p, g = problem.put(problem.params(), mesh), problem.put(G | {"small": bad}, mesh)
    tx = chained(lamb8bit, options=StateOptions(count_skipped=True))
    out, state = jax.jit(lambda p, g, state: apply_fused(tx, p, g, state))(p, g, tx.init(p))
    assert problem.differing(out, p) == []
    assert state[1].skipped == sum(x.size for x in p.values())
