"""A step on eight devices is the step on one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from optax_lamblion import StateOptions, apply_fused, lamb, lamb8bit, lion8bit
from tests.meshes import problem
from tests.meshes.problem import P
from tests.variants import VARIANTS, every

# Every variant on every mesh. Those that are not slow see each mesh, each kind and each form once,
# and no variant by its other name.
WAYS = {"2x2x2": ("auto", True), "4x2": ("explicit", False), "1x8": ("auto", False)}


def everywhere():
    for v in VARIANTS:
        for shape, kind, fused in itertools.product(problem.MESHES, problem.KINDS, (True, False)):
            quick = WAYS[shape] == (kind, fused) and "32bit" not in v.name
            label = "-".join((v.name, shape, kind, "apply_fused" if fused else "update"))
            marks = [] if quick else [pytest.mark.long]
            yield pytest.param(v, shape, kind, fused, id=label, marks=marks)


by_kind = pytest.mark.parametrize("kind", problem.KINDS)
with_auto_axes = pytest.mark.parametrize(
    "kind", ["auto", pytest.param("explicit", marks=pytest.mark.long)]
)


@functools.cache
def on_one(make, fused, dtype=jnp.float32, steps=3):
    """The run on one device, once for all meshes."""
    return problem.Run(make(), fused=fused, dtype=dtype, steps=steps)


def assert_close(on_mesh, alone, before, steps=1):
    """Parameters within the order in which a mesh adds up a norm.

    That moves a trust ratio, and with it an update, by a few units in the last place: four are
    allowed, and one has been seen. The sum with the parameter is rounded once more.
    """
    for name, p in on_mesh.items():
        a, b, start = (np.asarray(x[name], np.float32) for x in (alone, on_mesh, before))
        digits = jnp.finfo(p.dtype).nmant - 23
        ulp = np.spacing(np.abs(a)) * np.float32(2.0**-digits)
        update = np.abs(a - start) if steps == 1 else np.max(np.abs(a - start))
        bound = steps * (ulp + 2.0**-21 * update) + 1e-37
        np.testing.assert_array_less(np.abs(a - b), bound)


@pytest.mark.parametrize(("v", "shape", "kind", "fused"), list(everywhere()))
def test_variants(v, shape, kind, fused):
    alone = on_one(v, fused, steps=1 if v.has_ratio else 3)
    mesh = problem.make_mesh(shape, kind)
    run = problem.Run(v(), mesh, fused=fused, steps=1 if v.has_ratio else 3)
    # The state of LAMB does not depend on the length of its steps, if the gradient does not.
    assert problem.differing(alone.state, run.state) == []
    if not v.has_ratio:
        assert problem.differing(alone.params, run.params) == []
        assert run.collectives == {}
    else:
        assert_close(run.params, alone.params, problem.params())
        assert run.collectives == {"all-reduce": 1}
    assert run.copies(at_least=512) == []  # one scale in 256 is copied, on one device as well


@with_auto_axes
@every(lambda v: v.bits == 8)
def test_bfloat16(v, kind):
    alone = on_one(v, True, jnp.bfloat16)
    run = problem.Run(v(), problem.make_mesh("4x2", kind), dtype=jnp.bfloat16)
    assert problem.differing(alone.state, run.state) == []
    if not v.has_ratio:
        assert problem.differing(alone.params, run.params) == []
    else:
        assert_close(run.params, alone.params, problem.params(jnp.bfloat16))


def clipping(make, **kwargs):
    return make(1e-3, weight_decay=0.1, percentile_clipping=5, **kwargs)


@by_kind
@pytest.mark.parametrize("make", [lion8bit, lamb])
def test_percentile_clipping_goes_by_whole_norms(make, kind):
    """One all-reduce for the norms of all gradients, and one for those of LAMB."""
    tx = clipping(make)
    alone, run = problem.Run(tx), problem.Run(tx, problem.make_mesh("4x2", kind))
    for name in problem.SHAPES:
        h = alone.state.gnorm_history[name]
        np.testing.assert_allclose(run.state.gnorm_history[name], h, rtol=2.0**-21)
        # A history that differs in its last digits clips by a factor that does.
        np.testing.assert_allclose(run.params[name], alone.params[name], rtol=1e-5, atol=1e-6)
    assert run.collectives == {"all-reduce": 1 if make is lion8bit else 2}


@by_kind
def test_percentile_clipping_of_divided_layers(kind):
    """A norm for every layer, of which a device has some; histories stay as they were."""
    tx = clipping(lamb, options=StateOptions(stacked=lambda path: True))
    rng = np.random.default_rng(0)
    p, *grads = (jnp.asarray(rng.standard_normal((8, 64)), jnp.float32) for _ in range(3))
    mesh = problem.make_mesh("4x2", kind)

    def steps(place):
        q, state = place(p), tx.init(place(p))
        step = jax.jit(lambda p, g, state: apply_fused(tx, p, g, state))
        for g in grads:
            before = jax.typeof(state.gnorm_history)
            q, state = step(q, place(g), state)
            assert jax.typeof(state.gnorm_history) == before
        return q, state

    alone = steps(lambda x: x)
    run = steps(lambda x: jax.device_put(x, NamedSharding(mesh, P("fsdp", "tp"))))
    assert alone[1].gnorm_history.shape == (8, 100)
    for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(run), strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)  # as above


@by_kind
@pytest.mark.parametrize("make", [lion8bit, lamb8bit])
def test_one_scale_for_a_tensor(make, kind):
    """Its shards agree on it, by an all-reduce of the maximum."""
    tx = make(1e-3, weight_decay=0.1, block_wise=False)
    alone, run = problem.Run(tx, steps=1), problem.Run(tx, problem.make_mesh("4x2", kind), steps=1)
    assert problem.differing(alone.state, run.state) == []
    if make is lion8bit:
        assert problem.differing(alone.params, run.params) == []
    assert "all-gather" not in run.collectives


@by_kind
@every(lambda v: v.name in ("lamb8bit", "paged_lamb8bit", "lamb32bit"))
def test_layers_of_a_stack(v, kind):
    """Norms of layers, of which a mesh divides the layers themselves too; still one all-reduce."""
    stacked = ("stack", "matrix")
    tx = v(options=StateOptions(stacked=lambda path: path in stacked))
    alone = problem.Run(tx, steps=1)
    run = problem.Run(tx, problem.make_mesh("4x2", kind), steps=1)
    assert problem.differing(alone.state, run.state) == []
    assert_close(run.params, alone.params, problem.params())
    assert run.collectives == {"all-reduce": 1}
    assert problem.differing(on_one(v, True, steps=1).params, alone.params) == sorted(stacked)


@with_auto_axes
def test_amsgrad(kind):
    tx = lamb8bit(1e-3, weight_decay=0.1, amsgrad=True)
    alone, run = problem.Run(tx, steps=1), problem.Run(tx, problem.make_mesh("4x2", kind), steps=1)
    assert problem.differing(alone.state, run.state) == []
    assert_close(run.params, alone.params, problem.params())


@with_auto_axes
@every(lambda v: v.name in ("lion8bit", "lamb8bit", "paged_lamb32bit"))
def test_bad_elements(v, kind, monkeypatch):
    """A gradient element that is not finite keeps its parameter and moments, on any device."""
    bad = {name: np.asarray(g).copy() for name, g in problem.gradients(1)[0].items()}
    for g in bad.values():
        g.reshape(-1)[[0, g.size // 2, -1]] = np.nan, np.inf, -np.inf
    monkeypatch.setattr(
        problem, "gradients", lambda *_: [{k: jnp.asarray(g) for k, g in bad.items()}]
    )
    alone = problem.Run(v(), steps=1)
    run = problem.Run(v(), problem.make_mesh("4x2", kind), steps=1)
    assert problem.differing(alone.state, run.state) == []
    before = problem.params()
    for name, p in run.params.items():
        changed = np.asarray(p != before[name]).reshape(-1)
        assert not changed[[0, changed.size // 2, -1]].any() and changed.sum() > changed.size / 2
