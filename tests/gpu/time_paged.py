"""The link between host and device, and steps of which the state crosses it.

All in bfloat16 on the large leaves, about 1e9 parameters. The bytes of a program are those that
cross the link, in both directions. What another program would add to its peak is in another part.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from optax_lamblion._paging.memory import DEVICE, HOST, KIND
from optax_lamblion._state.options import StateOptions
from tests.gpu import floors, offload, paging
from tests.gpu.time_ours import DTYPES, elements, large_leaves, stepping, trees
from tests.gpu.timing import Program

IN_FLIGHT = (1, 2, 3)
_COPIED_BYTES = 2**29
_RESIDENT = {
    "lion8bit": floors.lion8(2, 2, "apply_fused"),
    "lion32bit": floors.lion32(2, 2, 4),
    "lamb8bit": floors.lamb8(2, 2, "apply_fused"),
    "lamb32bit": floors.lamb32(2, 2, 4),
}


def link(run):
    """Plain copies in, out, and in both directions at once: from Python, and in a program."""
    size = 2**14 if run.interpret else _COPIED_BYTES
    device = jax.devices()[0]
    spaces = {
        "device_put": (
            SingleDeviceSharding(device),
            SingleDeviceSharding(device, memory_kind=KIND),
        ),
        "device_put in a program": (DEVICE, HOST),
    }

    def on_device():
        return jnp.arange(size // 4, dtype=jnp.uint32)

    def on_host():
        return jax.device_put(on_device(), HOST)

    def both(to, x):
        return tuple(map(jax.device_put, x, to))

    for by, (to_device, to_host) in spaces.items():
        directions = {  # from where, to where, how
            "in": (on_host, on_device, lambda x, to=to_device: jax.device_put(x, to)),
            "out": (on_device, on_host, lambda x, to=to_host: jax.device_put(x, to)),
            "both": (
                lambda: (on_host(), on_device()),
                lambda: (on_device(), on_host()),
                functools.partial(both, (to_device, to_host)),
            ),
        }
        for direction, (source, target, move) in directions.items():
            yield Program(
                f"link: {direction}, {by}",
                lambda carry, constant, move=move: move(constant),  # a new array every time
                target,
                source,
                size * (2 if direction == "both" else 1),
                1,
                about={"paging": "link", "direction": direction, "by": by},
                donate=False,
                eager=by == "device_put",
            )


def resident(run):
    """The step of the resident optimizers: how long the kernels alone take."""
    for name, floor in _RESIDENT.items():
        if run.quick and not run.tiny and name != "lion8bit":
            continue
        tx = paging.optimizer(name, paged=False, learning_rate=1e-4)
        yield _program(run, f"resident {name}", tx, name, floor, "resident", profile=True)


def pages(mib, run):
    """Lion in 8 bits, pages of so many MiB; the fewest in flight first, for the peak to rise."""
    for in_flight in IN_FLIGHT:
        if run.quick and in_flight != 2:
            continue
        yield paged(run, "lion8bit", int(mib), in_flight)


def others(name, run):
    """Another optimizer with the default pages."""
    if not run.quick or run.tiny:
        yield paged(run, name, 32, 2)


def offloaded(kind, run):
    """The resident Lion with its state moved by one of `offload.KINDS`."""
    tx = offload.KINDS[kind](paging.optimizer("lion8bit", paged=False, learning_rate=1e-4))
    # Codes, and a scale for a block, in and out.
    each = 1 + 4 / floors.BLOCK
    about = _crossing(elements(leaves(run)) * each, elements(leaves(run)) * each)
    yield _program(run, f"lion8bit, {kind}", tx, "lion8bit", 2 * each, "stream", about)


def paged(run, name, mib, in_flight):
    """One step of a paged optimizer."""
    options = {"page_bytes": page_bytes(run, mib), "pages_in_flight": in_flight}
    tx = paging.optimizer(name, learning_rate=1e-4, **options)
    forms = {k: jax.ShapeDtypeStruct(x, jnp.bfloat16) for k, x in leaves(run).items()}
    come, go = paging.moved(name, forms, **options)
    title = f"paged_{name}, pages of {mib} MiB, {in_flight} in flight"
    per_element = (come + go) / elements(leaves(run))
    default = (mib * 2**20, in_flight) == (StateOptions.page_bytes, StateOptions.pages_in_flight)
    about = options | _crossing(come, go)
    return _program(run, title, tx, name, per_element, "stream", about, profile=default)


def page_bytes(run, mib):
    """The size of a page; in the interpreter all have the smallest."""
    return 2**20 if run.interpret else mib * 2**20


def leaves(run):
    """The large leaves; in the interpreter such as are paged."""
    if run.interpret:
        return {"leaf00": (1100, 1024), "leaf01": (128, 1024)}
    return large_leaves(run)


def _crossing(come, go):
    return {"link_bytes_in": come, "link_bytes_out": go}


def _program(run, title, tx, name, per_element, kind, about=None, profile=False):
    params, grads = trees(leaves(run), DTYPES["bf16"])
    step, carry = stepping(tx, params, True)
    common = {"paging": kind, "optimizer": name, "dtype": "bf16", "tensors": len(leaves(run))}
    return Program(
        f"paged: {title}",
        step,
        carry,
        grads,
        elements(leaves(run)),
        per_element,
        about=common | (about or {}),
        profile=profile,
    )
