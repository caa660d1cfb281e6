"""Which code runs the step of a leaf: decided for the device that it is compiled for.

None as implementation takes the kernels where they move fewer bytes, which is wherever they run,
and XLA elsewhere. A name takes that implementation or raises, except for leaves for which there is
nothing to gain: those in float32 and the smallest ones are XLA's always.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.lax import platform_dependent

from pallas_kernels import mosaic, xla
from pallas_kernels.mosaic_tile import TILE, why_not_blocks
from pallas_kernels.step import Spec, coded

IMPLEMENTATIONS = ("mosaic", "xla")

_OLDEST = 8.0
"""The compute capability that the instructions of the kernels need."""


def step(spec: Spec, g, p, slots, absmaxes, s, key, implementation=None):
    """One optimizer step of one leaf, see `xla.step`, by the implementation that fits."""
    arrays = g, p, slots, absmaxes, s, key
    small = g.size < TILE or not all(map(coded, slots))
    if implementation == "xla" or small:
        return xla.step(spec, *arrays)
    why = mosaic.why_not(spec, g, p)
    if implementation is None:
        if why or why_not_here() or _is_distributed(g):
            return xla.step(spec, *arrays)
        return platform_dependent(
            *arrays,
            cuda=functools.partial(mosaic.step, spec),
            default=functools.partial(xla.step, spec),
        )
    if why := why or _why_not_gpu():
        raise ValueError(f'`implementation="mosaic"` cannot run this step: {why}. {_REMEDY}')
    return platform_dependent(
        *arrays,
        cuda=functools.partial(mosaic.step, spec),
        default=functools.partial(_refused, spec),
    )


def why_not_here(block_size=256):
    """Why None does not mean kernels in this process; None if it does where it is a GPU's turn."""
    if why := why_not_blocks(block_size) or _why_not_gpu():
        return why
    if (count := len(_gpus())) > 1:
        return f"there are {count} GPUs, and a kernel does not divide its work among them by itself"
    return None


def describe():
    """`(implementation, why)` that None means for large 8-bit leaves in this process."""
    platform = jax.default_backend()
    if platform == "gpu" and not _gpus():
        return "xla", "the kernels are for GPUs of NVIDIA"
    if platform != "gpu":
        return "xla", f"the kernels are for GPUs of NVIDIA, and this is a {platform.upper()}"
    if why := why_not_here():
        return "xla", why
    capability = _gpus()[0].compute_capability
    return "mosaic", f"the GPU's compute capability is {capability}, and kernels move fewer bytes"


@functools.cache
def _gpus():
    try:
        return jax.devices("cuda")
    except RuntimeError:
        return []


def _why_not_gpu():
    for gpu in _gpus():
        if float(gpu.compute_capability) < _OLDEST:
            return (
                f"the kernels need compute capability {_OLDEST}, and {gpu.device_kind} has "
                f"{gpu.compute_capability}"
            )
    return None


def _is_distributed(x):
    """Whether a type says that an array is divided over devices, of which kernels know nothing."""
    aval = jax.typeof(x)
    return bool(aval.manual_axis_type.varying) or aval.sharding.mesh.size > 1


_REMEDY = (
    'Use `implementation=None`, which takes the fastest one that can, or `"xla"`, which runs '
    "everywhere."
)

# Both branches of `platform_dependent` are traced, so it takes a primitive to fail in one of them.
_refusal = Primitive("mosaic_cannot_run")
_refusal.multiple_results = True
_refusal.def_abstract_eval(lambda *, out: out)


def _refuse(context, *, out):
    platforms = " and ".join(context.module_context.platforms)
    raise ValueError(
        '`implementation="mosaic"` needs an NVIDIA GPU, and this step is compiled for '
        f"{platforms}. {_REMEDY}"
    )


mlir.register_lowering(_refusal, _refuse)


def _refused(spec, *arrays):
    """What a step would return, of a function that cannot be compiled."""
    out, tree = jax.tree.flatten(jax.eval_shape(functools.partial(xla.step, spec), *arrays))
    avals = tuple(jax.typeof(jnp.zeros(x.shape, x.dtype)) for x in out)
    return tree.unflatten(_refusal.bind(out=avals))
