"""Functions in the Triton language that generated kernels call. Importing this takes Triton."""

# It is not there where types are checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def largest(a, b):
    """The larger number, or NaN if one of them is NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def log2_on_cuda(x):
    """The instruction, where `tl.log2` is a polynomial."""
    return libdevice.fast_log2f(x)


@triton.jit
def log2_on_rocm(x):
    """As on CUDA."""
    return tl.inline_asm_elementwise(
        "v_log_f32 $0, $1", "=v,v", [x], dtype=tl.float32, is_pure=True, pack=1
    )
