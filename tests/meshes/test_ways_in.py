"""Every way in which a step can meet a mesh, and what is done to a step there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding

from optax_lamblion import (
    StateOptions,
    apply_fused,
    clip_by_percentile,
    lamb,
    lamb8bit,
    lion8bit,
    paged_lamb,
    paged_lion8bit,
    state_sharding,
)
from optax_lamblion._mesh import ways_in
from tests.meshes import problem
from tests.meshes.problem import P

SPECS = problem.SPECS
G = problem.gradients(1)[0]


def alone(tx):
    p = problem.params()
    return apply_fused(tx, p, G, tx.init(p))


def close(a, b, tolerance=2.0**-20):
    """Whether parameters and state are equal up to the order in which norms are added up."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=1e-7)


def as_good(a, b):
    """Whether two results are `close` but for the rounding of stored moments.

    Where a shard lies `jax.shard_map` does not say, so blocks are not rounded by their numbers in
    the whole leaf: codes may be those of neighbouring levels. Lion's step is made before that.
    """
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        if x.dtype != jnp.uint8:
            close(x, y)
            continue
        kind = np.int8 if ".mu" in jax.tree_util.keystr(path) else np.uint8  # two's complement
        codes, others = (np.asarray(c).view(kind).astype(int) for c in (x, y))
        assert np.abs(codes - others).max() <= 1


def mapped(tx, mesh, *, check_vma, axis_names=None):
    """A step in `jax.shard_map`, whose state was made outside."""
    p = problem.put(problem.params(), mesh)
    axis_names = frozenset(axis_names or mesh.axis_names)

    def manual(spec):
        def entry(names):
            names = (names,) if isinstance(names, str) else names or ()
            kept = tuple(name for name in names if name in axis_names)
            return kept or None

        return P(*map(entry, spec))

    specs = {name: manual(spec) for name, spec in SPECS.items()}
    by_name = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    of_state = jax.tree.map(lambda x: x.spec, state_sharding(tx, p, by_name))
    step = jax.shard_map(
        lambda p, g, state: apply_fused(tx, p, g, state),
        mesh=mesh,
        in_specs=(specs, specs, of_state),
        out_specs=(specs, of_state),
        check_vma=check_vma,
        axis_names=axis_names,
    )
    state = jax.jit(tx.init, out_shardings=state_sharding(tx, p))(p)
    return jax.jit(step)(p, problem.put(G, mesh), state)


class TestShardMap:
    """A training step that the user has mapped over shards."""

    @pytest.mark.parametrize("check_vma", [True, False])
    @pytest.mark.parametrize("make", [lion8bit, paged_lion8bit])
    def test_lion(self, make, check_vma):
        tx = make(1e-3, weight_decay=0.1, options=problem.PAGED)
        (p, state), expected = mapped(tx, problem.make_mesh(), check_vma=check_vma), alone(tx)
        assert problem.differing(expected[0], p) == []
        assert problem.differing(expected[1].mu_absmax, state.mu_absmax) == []
        as_good(expected[1], state)

    @pytest.mark.parametrize("make", [lamb, paged_lamb])
    def test_lamb_knows_from_types_what_is_divided(self, make):
        tx = make(1e-3, weight_decay=0.1, options=problem.PAGED)
        close(alone(tx), mapped(tx, problem.make_mesh(), check_vma=True))

    def test_clipping_knows_it_too(self):
        tx = lion8bit(1e-3, percentile_clipping=5)
        as_good(alone(tx), mapped(tx, problem.make_mesh(), check_vma=True))

    @pytest.mark.parametrize("clip", [{}, dict(percentile_clipping=5)])
    def test_without_types_it_has_to_be_told(self, clip):
        mesh = problem.make_mesh()
        with pytest.raises(ValueError, match=r'norm_axes=\("fsdp",\)'):
            mapped(lamb(1e-3, weight_decay=0.1, **clip), mesh, check_vma=False)
        options = StateOptions(norm_axes=("fsdp", "tp"))
        tx = lamb(1e-3, weight_decay=0.1, options=options)
        close(alone(lamb(1e-3, weight_decay=0.1)), mapped(tx, mesh, check_vma=False))

    def test_lamb_in_8_bits_rounds_otherwise_and_is_as_good(self):
        tx = lamb8bit(1e-3, weight_decay=0.1)
        p, state = alone(tx)
        on_mesh, state_on_mesh = mapped(tx, problem.make_mesh(), check_vma=True)
        as_good(state, state_on_mesh)
        for name in p:
            start = np.asarray(problem.params()[name])
            updates = [np.asarray(x[name]) - start for x in (p, on_mesh)]
            assert np.linalg.norm(updates[0] - updates[1]) < 0.05 * np.linalg.norm(updates[0])

    @pytest.mark.parametrize("make", [lion8bit, lamb])
    def test_over_some_axes(self, make):
        """The others are XLA's."""
        tx = make(1e-3, weight_decay=0.1)
        mesh = problem.make_mesh()
        as_good(alone(tx), mapped(tx, mesh, check_vma=True, axis_names={"fsdp"}))

    def test_data_parallel_training_in_pmap(self):
        devices = jax.devices("cpu")
        tx = lamb(1e-3, weight_decay=0.1, options=StateOptions(norm_axes=()))
        p = problem.params()
        many = jax.tree.map(lambda x: jnp.stack([x] * len(devices)), (p, G, tx.init(p)))
        out = jax.pmap(lambda p, g, state: apply_fused(tx, p, g, state), axis_name="d")(*many)
        close(alone(tx), jax.tree.map(lambda x: x[3], out))


@pytest.mark.parametrize("kind", problem.KINDS)
class TestTransformations:
    def start(self, tx, kind):
        mesh = problem.make_mesh("4x2", kind)
        p = problem.put(problem.params(), mesh)
        return p, problem.put(G, mesh), tx.init(p)

    @pytest.mark.parametrize("make", [lion8bit, lamb8bit, paged_lion8bit])
    def test_scan(self, make, kind):
        tx = make(1e-3, weight_decay=0.1, options=problem.PAGED)
        p, g, state = self.start(tx, kind)

        def body(carry, _):
            return apply_fused(tx, carry[0], g, carry[1]), None

        run = jax.jit(lambda p, state: lax.scan(body, (p, state), length=1)[0])
        close(alone(tx), run(p, state))

    @pytest.mark.parametrize("make", [lion8bit, lamb])
    def test_vmap(self, make, kind):
        tx = make(1e-3, weight_decay=0.1)
        p, g, _ = self.start(tx, kind)
        two = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), (p, g))
        run = jax.jit(jax.vmap(lambda p, g: apply_fused(tx, p, g, tx.init(p))))
        close(alone(tx), jax.tree.map(lambda x: np.asarray(x)[0], run(*two)))

    def test_gradient_through_a_step(self, kind):
        tx = lamb(1e-3, weight_decay=0.1)
        p, g, _ = self.start(tx, kind)

        def loss(p, g):
            updates, _ = tx.update(g, tx.init(p), p)
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(updates))

        close(jax.grad(loss)(problem.params(), G), jax.jit(jax.grad(loss))(p, g), 1e-4)

    def test_eager(self, kind):
        tx = lion8bit(1e-3, weight_decay=0.1)
        p, g, state = self.start(tx, kind)
        assert problem.differing(alone(tx), apply_fused(tx, p, g, state)) == []

    def test_cond(self, kind):
        tx = optax.apply_if_finite(lion8bit(1e-3, weight_decay=0.1), 3)
        p, g, state = self.start(tx, kind)
        out = jax.jit(lambda p, g, state: apply_fused(tx, p, g, state))(p, g, state)
        close(alone(tx), out)


def test_axes_of_both_kinds():
    """Explicit ones are taken by the step, Auto ones are XLA's."""
    devices = np.array(jax.devices("cpu")).reshape(4, 2)
    mesh = Mesh(devices, ("fsdp", "tp"), axis_types=(AxisType.Explicit, AxisType.Auto))
    for tx in (lion8bit(1e-3, weight_decay=0.1), lamb(1e-3, weight_decay=0.1)):
        p, g = problem.put(problem.params(), mesh), problem.put(G, mesh)
        step = jax.jit(lambda p, g, state, tx=tx: apply_fused(tx, p, g, state))
        close(alone(tx), step(p, g, tx.init(p)))


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("kind", problem.KINDS)
def test_clip_by_percentile(kind, scope):
    tx = clip_by_percentile(5, scope=scope)
    mesh = problem.make_mesh("4x2", kind)
    p = problem.put(problem.params(), mesh)
    run = jax.jit(lambda g: tx.update(g, tx.init(p)))
    compiled = run.lower(problem.put(G, mesh)).compile()
    assert compiled.as_text().count(" all-reduce(") == 1
    close(tx.update(G, tx.init(problem.params())), compiled(problem.put(G, mesh)))


@pytest.mark.parametrize("axes", ["fsdp", (1,), 3])
def test_norm_axes_are_names(axes):
    with pytest.raises(TypeError, match="`norm_axes` must be a tuple of names"):
        StateOptions(norm_axes=axes)


def test_a_model_with_heads():
    """Gradients that come through reshaped and transposed axes, as those of attention do."""
    mesh = problem.make_mesh("4x2")
    rng = np.random.default_rng(0)
    shapes = {"q": (256, 512), "out": (512, 256), "up": (256, 1024), "down": (1024, 256)}
    specs = {"q": P("fsdp", "tp"), "out": P(("tp", "fsdp"), None), "up": P("fsdp", "tp")}
    specs["down"] = P(("tp", "fsdp"), None)
    p = {k: jnp.asarray(rng.standard_normal(s) / 16, jnp.float32) for k, s in shapes.items()}
    x = jnp.asarray(rng.standard_normal((8, 16, 256)), jnp.float32)

    def loss(p, x):
        heads = (x @ p["q"]).reshape(8, 16, 8, 64).transpose(0, 2, 1, 3)
        scores = jax.nn.softmax(heads @ heads.swapaxes(-1, -2) / 8, axis=-1)
        y = (scores @ heads).transpose(0, 2, 1, 3).reshape(8, 16, 512) @ p["out"]
        return jnp.mean((x - jnp.tanh(y @ p["up"]) @ p["down"]) ** 2)

    def losses(p, x, tx, out_shardings=None):
        def step(p, state, x):
            return apply_fused(tx, p, jax.grad(loss)(p, x), state)

        step = jax.jit(step, out_shardings=out_shardings)
        state = tx.init(p)
        for _ in range(3):
            p, state = step(p, state, x)
        return float(loss(p, x))

    there = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    for tx in (lion8bit(1e-3), lamb8bit(1e-2)):
        on_mesh = losses(
            jax.device_put(p, there),
            jax.device_put(x, NamedSharding(mesh, P("fsdp"))),
            tx,
            (there, state_sharding(tx, p, there)),
        )
        assert on_mesh < float(loss(p, x))
        np.testing.assert_allclose(on_mesh, losses(p, x, tx), rtol=1e-4)


@pytest.mark.parametrize("kind", problem.KINDS)
def test_kernels_by_name_are_refused_where_they_cannot_run(kind):
    """On a mesh with Auto axes XLA says it, when it divides the program."""
    tx = lion8bit(1e-3, options=StateOptions(implementation="mosaic"))
    mesh = problem.make_mesh("4x2", kind)
    p = problem.put(problem.params(), mesh)
    step = jax.jit(lambda p, g, state: apply_fused(tx, p, g, state))
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="needs an NVIDIA GPU"):
        step(p, p, tx.init(p))


def test_kernels_by_name_are_not_mapped_on_a_mesh():
    tx = lion8bit(1e-3, options=StateOptions(implementation="mosaic"))
    p = problem.put(problem.params(), problem.make_mesh("4x2", "auto"))
    two = jax.tree.map(lambda x: jnp.stack([x, x]), p)
    with pytest.raises(ValueError, match="neither mapped nor differentiated"):
        jax.jit(jax.vmap(lambda p: apply_fused(tx, p, p, tx.init(p))))(two)


@pytest.mark.parametrize("kind", problem.KINDS)
def test_eager_steps_with_injected_hyperparameters_are_compiled_once(kind):
    """`optax.inject_hyperparams` builds the optimizer anew in every step."""
    tx = optax.inject_hyperparams(lion8bit)(1e-3)
    p = problem.put(problem.params(), problem.make_mesh("4x2", kind))
    state = tx.init(p)
    entry = {"auto": ways_in._in_auto, "explicit": ways_in._in_explicit}[kind]
    compiled = []
    for _ in range(4):
        _, state = tx.update(p, state, p)
        compiled.append(entry._cache_size())
    assert compiled[-1] == compiled[1]  # the first state may say less of where it is
