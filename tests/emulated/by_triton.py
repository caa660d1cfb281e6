"""What Triton makes of kernels, from where `pallas_kernels` asks it for one."""

import contextlib
import unittest.mock

import pallas_kernels.triton.launch
from pallas_kernels.triton.tile import WARPS
from tests.emulated import ptx
from tests.emulated.compiled import Compiled
from tests.emulated.lanes import WARP
from tests.triton import compiling

_SCRATCH = 2
"""Pointers that Triton adds to the parameters: to memory that these kernels do not ask for."""


@contextlib.contextmanager
def within(capability, emulation):
    """Within, kernels are compiled for a compute capability, and emulated."""
    known = {}

    def call(kernel, operands, types):
        """In place of `launch.call`."""
        # Dtypes are in no source.
        key = kernel.source, tuple(x.dtype for x in kernel.pointers), kernel.cut.tiles
        if key not in known:
            known[key] = compiled(kernel, capability)
        return emulation.launch(known[key], operands, types)

    with unittest.mock.patch.object(pallas_kernels.triton.launch, "call", call):
        yield


def compiled(kernel, capability):
    """The `Compiled` of a `Kernel`."""
    made = compiling.compiled(kernel, capability)
    parsed = ptx.parse(made.asm["ptx"])
    buffers = (*range(len(kernel.pointers)), *[None] * _SCRATCH)
    if len(parsed.parameters) != len(buffers) or made.metadata.num_warps != WARPS:
        raise ValueError(f"{kernel.name} is launched in another way than it was")
    shared = made.metadata.shared
    return Compiled.of(parsed, kernel.cut.tiles, WARP * WARPS, shared, buffers, whole=True)
