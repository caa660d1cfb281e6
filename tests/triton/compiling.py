"""Compiles generated kernels for GPUs that are not here, by Triton and by NVIDIA's assembler."""

import re
from typing import Any, NamedTuple

import jax
import numpy as np

from pallas_kernels.triton import launch
from pallas_kernels.triton.kernel import Kernel, function
from pallas_kernels.triton.tile import WARPS
from tests.deviceless import assembling

ARCHITECTURES = {75: "sm_75", 80: "sm_80", 86: "sm_86", 89: "sm_89", 90: "sm_90a"} | {
    100: "sm_100a",
    120: "sm_120a",
}
"""By compute capability, as the assembler calls them."""

_TYPES = {
    **dict(float32="*fp32", bfloat16="*bf16", float16="*fp16"),
    **dict(uint8="*u8", int8="*i8", uint32="*u32", int32="*i32"),
}


class Written(NamedTuple):
    """A kernel that a function launches, and with what."""

    kernel: Kernel
    operands: tuple[Any, ...]
    """Types of the arrays and references."""
    results: tuple[Any, ...]
    """Types of the new arrays."""


def kernels(call, *arguments) -> list[Written]:
    """The kernels that a function of arrays launches."""
    written = []

    def instead(kernel, operands, types):
        given = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands)
        written.append(Written(kernel, given, types))
        return tuple(jax.numpy.zeros(x.shape, x.dtype) for x in types)

    before, launch.call = launch.call, instead
    try:
        jax.eval_shape(lambda *args: call(*args), *arguments)
    finally:
        launch.call = before
    return written


def compiled(kernel: Kernel, capability=90, platform="cuda"):
    """What Triton makes of a kernel. `capability` is an architecture for `platform` "rocm"."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=function(kernel, platform),
        signature={x.name: _TYPES[np.dtype(x.dtype).name] for x in kernel.pointers},
        constexprs={},
        # As jax-triton says of every array.
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(kernel.pointers))},
    )
    target = {"cuda": ("cuda", capability, 32), "rocm": ("hip", capability, 64)}[platform]
    options = dict(launch.options(platform), num_warps=launch.warps(platform))
    return triton.compile(source, target=GPUTarget(*target), options=options)


def facts(kernel: Kernel, capability=90):
    """Registers, spilled bytes and machine code of a kernel: see `sass`."""
    return assembling.facts(compiled(kernel, capability).asm["ptx"], ARCHITECTURES[capability])


THREADS = 32 * WARPS
"""Of a program."""


def elements_of_a_thread(kernel: Kernel):
    """How many elements of a tile a thread holds."""
    return kernel.cut.elements // THREADS


def instructions(kernel: Kernel, capability=90):
    """Instructions for each element of a tile with nothing to skip, a part of a whole leaf."""
    return facts(kernel, capability)["shortest"] / elements_of_a_thread(kernel)


def amd_facts(kernel: Kernel, architecture="gfx942"):
    """Registers of a thread of a kernel on an AMD GPU, and what does not fit into them."""
    code = compiled(kernel, architecture, "rocm").asm["amdgcn"]

    def number(field):
        (found,) = re.findall(rf"^\s*\.{field}:\s*(\d+)$", code, re.MULTILINE)
        return int(found)

    return {
        "registers": number("vgpr_count"),
        "spilled": number("vgpr_spill_count") + number("sgpr_spill_count"),
        "scratch_bytes": number("private_segment_fixed_size"),
    }
