"""Kinds of memory: which there are, where an array is, and how it gets elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding

from optax_lamblion._paging.tpus import no_codes_on_tpus

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device


KIND = "pinned_host"
"""Host memory that a GPU reads and writes by itself."""


def memory_kind(x):
    """The kind of memory that an array is in, or a `jax.ShapeDtypeStruct` will be."""
    if jax.typeof(x).memory_space == HOST:
        return KIND
    return getattr(getattr(x, "sharding", None), "memory_kind", None) or "device"


def abstract_state(tx, params):
    """The shapes of a fresh state, with its kinds of memory and without a place on a mesh.

    `jax.eval_shape` forgets the memory of what is on a mesh with Explicit axes.
    """
    traced = jax.jit(lambda params: tx.init(params)).trace(params)
    host = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=KIND)

    def struct(aval):
        sharding = host if aval.memory_space == HOST else None
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)

    avals = traced.jaxpr.out_avals
    return jax.tree.structure(traced.out_info).unflatten([struct(x) for x in avals])


def memory_kinds(device):
    """The kinds of memory that a device can address."""
    return {memory.kind for memory in device.addressable_memories()}


def move(tree, space, late=False):
    """Arrays in that memory.

    Args:
      tree: Arrays.
      space: `HOST` or `DEVICE`.
      late: Whether XLA has been told already where arrays are to be, as in a `late` region of a
        mesh: then it takes what it makes of JAX's annotations itself.
    """
    if not late:
        return jax.device_put(jax.tree.map(no_codes_on_tpus, tree), space)
    target = "MoveToHost" if space == HOST else "MoveToDevice"

    def move(x):
        call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return lax.platform_dependent(x, cuda=call, default=lambda x: x)

    return jax.tree.map(move, tree)


def fetch(x):
    """An array in the memory of the device."""
    if isinstance(x, Tracer):
        return jax.device_put(x, DEVICE) if memory_kind(x) == KIND else x
    if isinstance(x, jax.Array) and memory_kind(x) == KIND:
        return jax.device_put(x, x.sharding.with_memory_kind("device"))
    return jnp.asarray(x)


def tied_to_device(state):
    """A state of which every array is committed to one device, if none is on several."""
    arrays = jax.tree.leaves(state)
    if is_traced() or any(len(x.sharding.device_set) > 1 for x in arrays):
        return state
    # An array in host memory is committed from the beginning, to the device of its parameter.
    place = next(x.sharding for x in arrays if x.committed).with_memory_kind("device")
    return jax.tree.map(lambda x: x if x.committed else jax.device_put(x, place), state)


def mesh_sharding(p):
    """The `NamedSharding` of a parameter, if it is known and on several devices; or None.

    It is not known of what is traced on a mesh with Auto axes, or mapped over.
    """
    if not is_traced():
        if isinstance(p, Tracer):
            return None
        sharding = getattr(p, "sharding", None)
        return sharding if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 else None
    sharding = jax.typeof(p).sharding
    explicit = jax.sharding.AxisType.Explicit in sharding.mesh.axis_types
    return sharding if sharding.mesh.size > 1 and explicit else None


def zeros(sharding, shape, dtype):
    """Zeros with a sharding; no process has to hold all of them."""
    return full(sharding, shape, 0, dtype)


def full(sharding, shape, value, dtype):
    """The same of any number."""
    if is_traced():
        return jax.sharding.reshard(jnp.full(shape, value, dtype), sharding)
    if len(sharding.device_set) == 1:
        return jax.device_put(np.full(shape, value, dtype), sharding)
    part = np.full(sharding.shard_shape(shape), value, dtype)
    return jax.make_array_from_callback(shape, sharding, lambda index: part)


def is_traced():
    """Whether a program is being traced, and constants are a part of it."""
    return isinstance(jnp.zeros(()), Tracer)
