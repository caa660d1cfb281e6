"""Where the arrays of a state go that comes from elsewhere: to a device, a mesh, the host."""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding

from optax_lamblion._paging.memory import HOST, KIND, fetch, is_traced, memory_kind
from optax_lamblion._state.sharding import shardings_of


def with_places(state, params, shardings=None, *, always=False):
    """An abstract state, as `jax.ShapeDtypeStruct`s that say where every array goes.

    Args:
      state: Arrays, or their shapes and kinds of memory.
      params: Parameters, or their shapes.
      shardings: Those of the parameters; None takes what they have.
      always: Whether to name a device where nothing asks for one, too.
    """
    leaves = jax.tree.leaves(params)
    if is_traced() or any(isinstance(p, Tracer) for p in leaves):
        return state  # the program around it says where arrays go
    own = [getattr(p, "sharding", None) for p in leaves]
    if shardings is not None or any(isinstance(x, NamedSharding) for x in own):
        places = shardings_of(state, params, shardings)
        return jax.tree.map(lambda x, s: struct(x, s), state, places)
    hosted = any(memory_kind(x) == KIND for x in jax.tree.leaves(state))
    device = next((x for x in own if x is not None), jnp.zeros(()).sharding)

    def place(x):
        if memory_kind(x) == KIND:
            return struct(x, device.with_memory_kind(KIND))
        return struct(x, device if always or hosted else None)

    return jax.tree.map(place, state)


def struct(x, sharding):
    """The shape and dtype of an array, with a place."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def put(x, like):
    """An array where `like` says; None stays None."""
    if x is None or like is None:
        return None
    if isinstance(x, Tracer) or is_traced():
        return jax.device_put(x, HOST) if memory_kind(like) == KIND else fetch(x)
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        return fetch(x)
    if not isinstance(x, jax.Array):
        return jax.device_put(x, sharding)
    if (kind := x.sharding.memory_kind) != sharding.memory_kind:
        # First to the place, then to the memory: JAX fails to do both at once for an array that
        # all devices of a mesh have, and one is to have.
        x = jax.device_put(x, sharding.with_memory_kind(kind))
    elif kind == KIND and jax.typeof(x).memory_space != HOST:
        x = jax.device_put(x, told_in_types(sharding))  # no copy
    return jax.device_put(x, sharding)


def told_in_types(sharding):
    """The same place, so that the type of an array that is put together there tells its memory.

    JAX forgets it if that is a single device: `jax.make_array_from_single_device_arrays` and so
    Orbax give such arrays a type in the memory of the device. A step goes by types.
    """
    if isinstance(sharding, NamedSharding) or sharding.memory_kind != KIND:
        return sharding
    (device,) = sharding.device_set
    mesh = jax.sharding.Mesh([device], ("device",))
    return NamedSharding(mesh, jax.sharding.PartitionSpec(), memory_kind=KIND)


def is_tied(state, params):
    """Whether a state belongs on the device of the parameters for good: if a part of it does."""
    own = [p for p in jax.tree.leaves(params) if getattr(p, "sharding", None) is not None]
    # Of a shape with a sharding somebody has said where it belongs.
    shapes = [p for p in own if isinstance(p, jax.ShapeDtypeStruct)]
    arrays = [x for x in [*own, *jax.tree.leaves(state)] if not isinstance(x, Tracer)]
    return bool(own) and (bool(shapes) or any(getattr(x, "committed", False) for x in arrays))
