"""The kernels that are modelled, as cases: every kernel of the default codec on one large leaf.

Without weight decay, which adds an instruction or two for each parameter. Those of an `elements a
thread` that is given are meant for no target: the command asks for them by name.
"""

import functools

import jax
import jax.numpy as jnp

import pallas_kernels
from pallas_kernels.arithmetic.blocks import absmax_shape
from tests.deviceless import kernels
from tests.deviceless.cases import Case, case
from tests.deviceless.throughput.gpus import GPUS

DTYPES = {"bf16": jnp.bfloat16, "f32": jnp.float32}
PER_THREAD = (8, 16, 32)
ELEMENTS = kernels.SHAPE[0] * kernels.SHAPE[1]

STEPS = {
    "lion_step": ("lion", "params"),
    "lion_signs": ("lion", "updates"),
    "adam_step": ("adam", "params"),
    "adam_moments": ("adam", "updates"),
    "lamb_moments": ("lamb", "params"),
    "lamb_apply": ("lamb", "params"),
}
"""The rule and what it emits of the step that a kernel is part of."""

NAMES = (*STEPS, "quantize", "dequantize")


def case_name(kernel, dtype, per_thread=None):
    """The name of the case that has a kernel. `per_thread` is None for what the code chooses."""
    if (dtype, per_thread) == ("bf16", None) and STEPS.get(kernel, ("", ""))[1] == "params":
        return f"kernel/{STEPS[kernel][0]}/power/bf16"  # the same program
    what = "/".join(STEPS[kernel]) if kernel in STEPS else kernel
    return f"throughput/{what}/{dtype}" + (f"/{per_thread}" if per_thread else "")


def has(kernel, per_thread):
    """Whether a kernel can be cut so: quantization has one way only."""
    return per_thread is None or kernel in STEPS


def _step(rule, emit, dtype, per_thread=None):
    made = kernels.step(rule, dtype, dtype, emit=emit)
    spec = made.fn.args[0]._replace(per_thread=per_thread)
    return Case(functools.partial(made.fn.func, spec), made.args, made.donate)


def _quantize(dtype):
    function = functools.partial(pallas_kernels.quantize, implementation="mosaic")
    return Case(function, (jax.ShapeDtypeStruct(kernels.SHAPE, dtype),))


def _dequantize(dtype):
    function = functools.partial(pallas_kernels.dequantize, dtype=dtype, implementation="mosaic")
    codes = jax.ShapeDtypeStruct(kernels.SHAPE, jnp.uint8)
    absmax = jax.ShapeDtypeStruct(absmax_shape(kernels.SHAPE, 256), jnp.float32)
    return Case(function, (codes, absmax))


for _name, _dtype in DTYPES.items():
    for _kernel in STEPS:
        if _kernel == "lamb_apply":  # in the case of `lamb_moments`
            continue
        _arguments = *STEPS[_kernel], _dtype
        if case_name(_kernel, _name).startswith("throughput/"):
            case(case_name(_kernel, _name), targets=tuple(GPUS))(
                functools.partial(_step, *_arguments)
            )
        for _count in PER_THREAD:
            case(case_name(_kernel, _name, _count), targets=())(
                functools.partial(_step, *_arguments, _count)
            )
    case(case_name("quantize", _name), targets=tuple(GPUS))(functools.partial(_quantize, _dtype))
    case(case_name("dequantize", _name), targets=tuple(GPUS))(
        functools.partial(_dequantize, _dtype)
    )
