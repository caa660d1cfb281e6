"""Placement: which leaves' state sleeps in host memory, and how it gets there.

A leaf is paged or resident for good: `init` decides it, from sizes and options alone, and puts the
state there. From then on the arrays' memory kind says so, and `update` returns them where they
were.
"""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device
KIND = "pinned_host"
"""Host memory that a GPU reads and writes by itself."""


def which_are_paged(extents, options):
    """For every leaf, whether it is paged.

    Those below `page_min_size` stay on the device. `device_budget` keeps more of them there, always
    the largest that still fits: the fewest leaves, and first those in pieces, of which LAMB reads
    the new state once more.

    Args:
      extents: An `Extent` for every leaf.
      options: `StateOptions`.
    """
    out = [x.size >= options.page_min_size for x in extents]
    small = sum(x.nbytes for x, is_paged in zip(extents, out, strict=True) if not is_paged)
    room = (options.device_budget or 0) - small
    candidates = [i for i, is_paged in enumerate(out) if is_paged]
    for i in sorted(candidates, key=lambda i: (-extents[i].nbytes, i)):
        if extents[i].nbytes <= room:
            room -= extents[i].nbytes
            out[i] = False
    return out


def check_host_memory(resident):
    """Raises `ValueError` where there is no host memory for state. `resident` is what to use."""
    if jax.sharding.get_abstract_mesh().abstract_device is not None:
        return  # compiled for devices that need not be here
    device = jnp.zeros(()).devices().pop() if not is_traced() else jax.local_devices()[0]
    kinds = memory_kinds(device)
    if KIND not in kinds:
        raise ValueError(
            f'`paged=True` keeps state in memory of kind "{KIND}", which {device.platform} does '
            f"not have; it has {', '.join(sorted(kinds))}. Use `{resident}`, which keeps its state "
            "on the device."
        )


def refuse_multi_steps():
    """Raises `ValueError` when called by `optax.MultiSteps`.

    It steps at every call, and of every array of the state takes the new one or the old one by
    `jnp.where`: for an array in host memory that is work for the host's processor.
    """
    frame = inspect.currentframe()
    while frame := frame and frame.f_back:
        if frame.f_globals.get("__name__") == optax.MultiSteps.__module__ and (
            frame.f_code.co_qualname.startswith(("MultiSteps.init", "MultiSteps.update"))
        ):
            raise ValueError(_NO_MULTI_STEPS)


_NO_MULTI_STEPS = """\
`optax.MultiSteps` around a paged optimizer would have the host's processor choose between old and \
new state at every micro-step. Accumulate the gradients before it and step when they are complete:
    optax.chain(
        optax.MultiSteps(optax.identity(), k).gradient_transformation(),
        optax.transforms.conditionally_transform(paged, lambda step: step % k == k - 1),
    )"""


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
        return jax.device_put(tree, space)
    target = "MoveToHost" if space == HOST else "MoveToDevice"

    def move(x):
        call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return lax.platform_dependent(x, cuda=call, default=lambda x: x)

    return jax.tree.map(move, tree)


class Filler:
    """Makes zeros in host memory, and never more than a few pages of them on the device.

    Args:
      page_bytes: The size of a page.
    """

    def __init__(self, page_bytes):
        self._page_bytes = page_bytes
        self._last: Any = None

    def zeros(self, like, shape, dtype, sharding=None):
        """Zeros in host memory, where the devices of the parameter `like` see it.

        `sharding` is a `NamedSharding` on its mesh, if it has one.
        """
        if not is_traced():
            if sharding is None:
                sharding = getattr(like, "sharding", None) or jnp.zeros(()).sharding
            return zeros(sharding.with_memory_kind(KIND), shape, dtype)
        # A compiled program makes a constant on the device. It goes to the host page by page, and
        # one after the other: all pages at once would be the whole state.
        zero = jnp.zeros((), dtype)
        if self._last is not None:
            zero, _ = lax.optimization_barrier((zero, self._last))
        if jax.typeof(like).sharding.mesh.size > 1:  # XLA divides it, if nobody cuts it
            x = jnp.broadcast_to(zero, shape)
            x = x if sharding is None else jax.sharding.reshard(x, sharding)
            self._last = jax.device_put(x, HOST)
            return self._last
        size, page = math.prod(shape), self._page_bytes // zero.dtype.itemsize
        # Rows, because elements beyond 2**31 cannot be counted.
        rows, width = (size // 256, 256) if size % 256 == 0 else (size, 1)
        if size <= page or rows >= 2**31:
            x = jax.device_put(jnp.full(shape, zero), HOST)
        else:
            x = jax.device_put(lax.empty((rows, width), dtype), HOST)
            for start in range(0, rows, page // width):
                part = jnp.full((min(page // width, rows - start), width), zero)
                x = lax.dynamic_update_slice(x, jax.device_put(part, HOST), (start, 0))
            x = x.reshape(shape)
        self._last = x
        return x


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
    if is_traced():
        return jax.sharding.reshard(jnp.zeros(shape, dtype), sharding)
    if len(sharding.device_set) == 1:
        return jax.device_put(np.zeros(shape, dtype), sharding)
    part = np.zeros(sharding.shard_shape(shape), dtype)
    return jax.make_array_from_callback(shape, sharding, lambda index: part)


def is_traced():
    """Whether a program is being traced, and constants are a part of it."""
    return isinstance(jnp.zeros(()), Tracer)
