"""Parameters on several meshes, or on several devices: what JAX cannot do is said with a name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding

from optax_lamblion import StateOptions, clip_by_percentile, lamb, lion8bit, paged_lion8bit
from tests.meshes import problem
from tests.meshes.problem import P

DEVICES = jax.devices("cpu")
SPECS = {"u": P("a"), "v": P(("x", "y"))}
MESSAGE = r"Leaf 'v' is on a mesh with axes {'x': 2, 'y': 4}, and 'u' on .*{'a': 8}.*one mesh"
OPTIONS = StateOptions(min_8bit_size=1, page_min_size=1, block_size=64)


def meshes(kind):
    """Two meshes of the same devices."""
    kind = problem.KINDS[kind]
    return {
        "u": Mesh(np.array(DEVICES), ("a",), axis_types=(kind,)),
        "v": Mesh(np.array(DEVICES).reshape(2, 4), ("x", "y"), axis_types=(kind,) * 2),
    }


def on_several(kind):
    """A parameter on each."""
    p = jnp.ones((8, 64))
    return {k: jax.device_put(p, NamedSharding(mesh, SPECS[k])) for k, mesh in meshes(kind).items()}


def on_one(kind):
    """The same parameters in the same shards, all on the second mesh."""
    return jax.device_put(jnp.ones((8, 64)), NamedSharding(meshes(kind)["v"], SPECS["v"]))


def by_name(make, **arguments):
    """An optimizer for every parameter."""
    return optax.partition({k: make(**arguments) for k in SPECS}, {k: k for k in SPECS})


@pytest.mark.parametrize("kind", problem.KINDS)
@pytest.mark.parametrize("make", [lion8bit, lamb, paged_lion8bit])
def test_several_meshes_are_refused(make, kind):
    tx, p = make(1e-3, options=OPTIONS), on_several(kind)
    for init in (tx.init, jax.jit(tx.init)):
        with pytest.raises(ValueError, match=MESSAGE):
            init(p)
    state = tx.init(dict.fromkeys(p, on_one(kind)))
    for update in (tx.update, jax.jit(tx.update)):
        with pytest.raises(ValueError, match="Leaf 'u' is on a mesh .*one mesh"):
            update(p, state, p)  # where the state of 'u' is


def test_a_gradient_of_another_mesh_than_its_parameter_is_refused():
    p, tx = {"u": on_several("auto")["u"], "v": jnp.ones((8, 64))}, lion8bit(1e-3)
    with pytest.raises(ValueError, match="Leaf 'v' is on a mesh"):
        tx.update(on_several("auto"), tx.init(p), p)


@pytest.mark.parametrize("kind", problem.KINDS)
def test_clipping_alone_refuses_them(kind):
    g, tx = on_several(kind), clip_by_percentile(5)
    with pytest.raises(ValueError, match=MESSAGE):
        jax.jit(tx.update)(g, tx.init(g))


def test_stages_on_devices_of_their_own_are_refused():
    """Meshes of one shape are not the same."""
    halves = np.array(DEVICES).reshape(2, 4)
    there = [NamedSharding(Mesh(devices, ("a",)), P("a")) for devices in halves]
    p = {k: jax.device_put(jnp.ones((8, 64)), s) for k, s in zip(SPECS, there, strict=True)}
    with pytest.raises(ValueError, match="Leaf 'v' is on a mesh with axes {'a': 4}"):
        lion8bit(1e-3).init(p)


class TestRemedies:
    """What the message says helps."""

    def test_one_mesh(self):
        p = {"u": on_one("auto"), "v": on_one("auto")}
        assert p["u"].sharding.device_set == on_several("auto")["u"].sharding.device_set
        tx = lion8bit(1e-3, options=OPTIONS)
        jax.block_until_ready(jax.jit(tx.update)(p, tx.init(p), p))

    @pytest.mark.parametrize("kind", problem.KINDS)
    def test_an_optimizer_for_every_mesh(self, kind):
        """With Auto axes JAX does not compile two meshes into one program."""
        p, tx = on_several(kind), by_name(lion8bit, learning_rate=1e-3, options=OPTIONS)
        update = jax.jit(tx.update) if kind == "explicit" else tx.update
        updates, _ = update(p, tx.init(p), p)
        one = lion8bit(1e-3, options=OPTIONS)
        expected, _ = one.update(jnp.ones((8, 64)), one.init(jnp.ones((8, 64))), jnp.ones((8, 64)))
        for x in updates.values():
            np.testing.assert_array_equal(x, expected)


class TestDevices:
    """Parameters on single devices, as in a pipeline that is stepped eagerly."""

    def on_devices(self):
        return {
            k: jax.device_put(jnp.ones((8, 64)), d) for k, d in zip("uv", DEVICES, strict=False)
        }

    def test_paged_leaves_of_several_are_refused(self):
        tx = paged_lion8bit(1e-3, options=OPTIONS)
        with pytest.raises(ValueError, match=r"'v' is on device .*'u' on device .*partition"):
            tx.init(self.on_devices())

    @pytest.mark.parametrize("make", [lion8bit, paged_lion8bit])
    def test_an_optimizer_for_every_device(self, make):
        p, tx = self.on_devices(), by_name(make, learning_rate=1e-3, options=OPTIONS)
        updates, _ = tx.update(p, tx.init(p), p)
        assert [x.devices() for x in updates.values()] == [{d} for d in DEVICES[:2]]

    def test_resident_ones_need_no_remedy(self):
        p, tx = self.on_devices(), lion8bit(1e-3, options=OPTIONS)
        updates, _ = tx.update(p, tx.init(p), p)
        assert [x.devices() for x in updates.values()] == [{d} for d in DEVICES[:2]]
