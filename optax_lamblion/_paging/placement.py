"""Placement: which leaves keep their state in host memory.

Decided from sizes and options alone, by `init` and by every `update`: a state that lies elsewhere,
as after a restore, goes where the optimizer keeps it with its first step.
"""

import inspect

import jax
import jax.numpy as jnp
import optax

from optax_lamblion._paging.memory import KIND, is_traced, memory_kinds
from optax_lamblion._paging.tpus import REFUSAL


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


def check_host_memory(bits, resident):
    """Raises `ValueError` where there is no host memory for state. `resident` is what to use."""
    named = jax.sharding.get_abstract_mesh().abstract_device
    device = named or (jax.local_devices()[0] if is_traced() else jnp.zeros(()).devices().pop())
    if bits == 8 and device.platform == "tpu":
        raise ValueError(f"`paged=True`: {REFUSAL.format(f'`{resident}`')}.")
    if named is not None:
        return  # compiled for devices that need not be here
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
    )
With k = 1 nothing is accumulated: `tx if k == 1 else optax.MultiSteps(tx, k)` leaves it out."""
