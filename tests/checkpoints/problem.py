"""States with something in every array, the places that they go to, and the way through Orbax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from optax_lamblion import LambState, LionState, state_sharding
from tests import oracles

P = PartitionSpec
SHAPES = {
    "rows": (16, 512),  # the scales have the parameter's rank
    "odd_tail": (4097,),  # flat scales, a short last block
    "small": (33,),  # too small for 8 bits
}
PLACES = {
    "one device": None,
    "8 devices": ((8,), ("fsdp",), {"rows": P("fsdp", None)}),
    "4 devices": ((2, 2), ("fsdp", "tp"), {"rows": P("fsdp", "tp")}),
}
"""The shape and the axes of a mesh, and the parameters that are divided over it."""


@functools.cache
def shardings(place, kind=AxisType.Auto):
    """Where parameters are, by name; of one device not the first, which nothing is by chance."""
    if PLACES[place] is None:
        return dict.fromkeys(SHAPES, SingleDeviceSharding(jax.devices()[5]))
    sizes, names, divided = PLACES[place]
    devices = np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes)
    mesh = Mesh(devices, names, axis_types=(kind,) * len(sizes))
    return {name: NamedSharding(mesh, divided.get(name, P())) for name in SHAPES}


def params(place="one device", kind=AxisType.Auto, seed=0):
    """Parameters in a place, or gradients with another seed."""
    rng = np.random.default_rng(seed)
    tree = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return jax.device_put(tree, shardings(place, kind))


# ------------------------------------------------------------------------------------- contents


def filled(state, seed=0):
    """A state with other contents: moments as of a long run, and as many steps.

    Some codes are 0, and some blocks have a scale of 0.
    """
    rng = np.random.default_rng(seed)

    def node(node):
        if not isinstance(node, LionState | LambState):
            return node
        fields = node._asdict() | {"count": np.int32(1234)}
        for name in ("mu", "nu", "nu_max"):
            if getattr(node, name, None) is not None:
                fields |= _slot(node, name, rng)
        if node.gnorm_history is not None:
            fields["gnorm_history"] = jax.tree.map(
                lambda x: rng.uniform(1, 2, x.shape).astype(np.float32), node.gnorm_history
            )
        if node.skipped is not None:
            fields["skipped"] = np.int32(77)
        return type(node)(**fields)

    out = jax.tree.map(node, state, is_leaf=lambda x: isinstance(x, LionState | LambState))
    return jax.tree.map(
        lambda x, like: jax.device_put(x, like.sharding) if like.committed else jnp.asarray(x),
        out,
        state,
    )


def _slot(node, name, rng):
    codec = next(iter(node.layout)).split("_")[0] if node.layout else None

    def values(x):
        if x.dtype == np.uint8:
            codes = rng.choice(oracles.written(codec, name == "mu"), x.shape)
            codes[rng.uniform(size=x.shape) < 0.1] = 0
            return codes
        normal = rng.normal(size=x.shape) * 10.0 ** rng.uniform(-4, 0, x.shape)
        return (normal if name == "mu" else normal**2).astype(np.float32)

    def scales(x, absmax):
        if x.dtype != np.uint8:
            return absmax
        out = 10.0 ** rng.uniform(-8, 0, absmax.shape)
        out[rng.uniform(size=absmax.shape) < 0.1] = 0
        return out.astype(np.float32)

    slot, absmax = getattr(node, name), getattr(node, f"{name}_absmax")
    out = {name: jax.tree.map(values, slot)}
    if absmax is not None:
        out[f"{name}_absmax"] = jax.tree.map(scales, slot, absmax)
    return out


# ---------------------------------------------------------------------------------------- Orbax


def save(folder, tree):
    """Writes a checkpoint and closes it: a checkpointer that is open at exit complains."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
        checkpointer.wait_until_finished()


def metadata(folder):
    """What a checkpoint says of its arrays."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.metadata(folder).item_metadata


def restore(folder, target=None):
    """Reads a checkpoint; without a target as dicts and lists."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, target)


# --------------------------------------------------------------------------------------- places


def expected_places(tx, p):
    """Where every array of a state of `tx` belongs, as shardings with a kind of memory."""
    first = jax.tree.leaves(p)[0].sharding
    if isinstance(first, NamedSharding):
        return state_sharding(tx, p)
    return jax.tree.map(lambda x: first.with_memory_kind(x.sharding.memory_kind), tx.init(p))


def assert_in_place(tree, places):
    """Every array is committed to its devices, in its kind of memory, and its type says so."""
    rows = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(places), strict=True)
    for (path, x), place in rows:
        kind = place.memory_kind or "device"
        assert x.sharding.device_set == place.device_set, path
        assert x.sharding.is_equivalent_to(place, x.ndim) or not x.sharding.num_devices > 1, path
        assert x.sharding.memory_kind == kind, path
        assert (jax.typeof(x).memory_space == jax.memory.Space.Host) == (kind != "device"), path
        assert x.committed, path


def bits(tree):
    """The bytes of every array, on their own."""
    return jax.tree.map(lambda x: np.array(x, copy=True).tobytes(), tree)


def addresses(tree):
    """Where in memory the shards of every array are."""
    return jax.tree.map(
        lambda x: [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards], tree
    )


def structs(tree):
    """Shapes and dtypes without anything else."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), tree)
