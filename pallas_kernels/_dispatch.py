"""Which code runs the step of a leaf: decided for the device that it is compiled for.

None as implementation takes the kernels where they can run, as they move fewer bytes, and XLA
elsewhere. A name takes that implementation or raises. But a step of leaves for which there is
nothing to gain, in float32 or of less than a tile, is always XLA's.
"""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.lax import platform_dependent

from pallas_kernels import mosaic, xla
from pallas_kernels.mosaic_tile import TILE, why_not_blocks
from pallas_kernels.places import is_divided
from pallas_kernels.step import Spec, coded

IMPLEMENTATIONS = ("mosaic", "xla")

_OLDEST = 8.0
"""The compute capability that the instructions of the kernels need."""


def step(spec: Spec, g, p, slots, absmaxes, s, dither, implementation=None):
    """One optimizer step of one leaf, see `xla.step`, by the implementation that fits."""
    arrays = g, p, slots, absmaxes, s, dither
    return _choose_for_leaf(spec, g, p, slots, implementation, mosaic.step, xla.step, arrays)


def moments(spec: Spec, g, p, slots, absmaxes, s, dither, implementation=None):
    """The new state of a leaf, of which other devices have parts.

    Returns:
      `(slots, absmaxes, sums, of_tiles, skipped)`: see `mosaic.moments`.
    """

    def general(spec, g, p, slots, *others):
        unknown = mosaic.unknown_tiles(spec, g, p, slots) if may_be_kernel else None
        *halfway, skipped = xla.moments(spec, g, p, slots, *others)
        return *halfway, unknown, skipped

    may_be_kernel = _why_not_leaf(spec, g, p, slots) is None
    arrays = g, p, slots, absmaxes, s, dither
    return _choose_for_leaf(spec, g, p, slots, implementation, mosaic.moments, general, arrays)


def apply(spec: Spec, g, p, slots, absmaxes, s, ratio, of_tiles, implementation=None):
    """What a leaf makes of the new state that `moments` returned: see `xla.apply`."""

    def general(spec, *others):
        return xla.apply(spec, *others[:-1])

    arrays = g, p, slots, absmaxes, s, ratio, of_tiles
    return _choose_for_leaf(spec, g, p, slots, implementation, mosaic.apply, general, arrays)


def _choose_for_leaf(spec, g, p, slots, implementation, kernel, general, arrays):
    if g.size < TILE or not all(map(coded, slots)):
        implementation = "xla"
    why_not = _why_not_leaf(spec, g, p, slots)
    kernel, general = (functools.partial(function, spec) for function in (kernel, general))
    return choose(implementation, why_not, kernel, general, arrays)


def _why_not_leaf(spec, g, p, slots):
    if not all(map(coded, slots)):
        return "the kernels are for 8-bit state"
    why_not = why_not_array(g, spec.block_size, *(() if p is None else (p.dtype,)))
    return why_not or _why_not_layers(spec, g)


def _why_not_layers(spec, g):
    if spec.stacked and g.size // max(g.shape[0], 1) % TILE:
        return f"layers of a stack must have a multiple of {TILE} elements"
    return None


def step_piece(spec: Spec, g, p, target, start, slots, absmaxes, s, dither, implementation=None):
    """The step of a piece of a leaf, see `xla.step_piece`."""
    arrays = g, p, target, start, slots, absmaxes, s, dither
    return _choose_for_piece("step_piece", spec, g, target, slots, implementation, arrays)


def moments_piece(spec: Spec, g, p, start, slots, absmaxes, s, dither, implementation=None):
    """The new state of a piece of a leaf, see `xla.moments_piece`."""
    arrays = g, p, start, slots, absmaxes, s, dither
    return _choose_for_piece("moments_piece", spec, g, p, slots, implementation, arrays)


def apply_piece(spec: Spec, g, p, target, start, slots, absmaxes, s, ratio, implementation=None):
    """What a piece of a leaf makes of its new state, see `xla.apply_piece`."""
    arrays = g, p, target, start, slots, absmaxes, s, ratio
    return _choose_for_piece("apply_piece", spec, g, target, slots, implementation, arrays)


def _choose_for_piece(name, spec, g, other, slots, implementation, arrays):
    if slots[0].size < TILE or not all(map(coded, slots)):
        implementation = "xla"
    kernel, general = (getattr(module, name) for module in (mosaic, xla))
    return choose(
        implementation,
        why_not_array(g, spec.block_size, other.dtype) or _why_not_layers(spec, g),
        functools.partial(kernel, spec),
        functools.partial(general, spec),
        arrays,
    )


def choose(implementation, why_not, kernel, general, arrays):
    """Calls the function that an implementation means, `kernel` or `general`, on the arrays.

    Args:
      implementation: One of `IMPLEMENTATIONS`, or None for the kernel where it can run.
      why_not: Why the kernel cannot run on these arrays, or None.
      kernel: The function for NVIDIA GPUs.
      general: The function for everything else, with the same results.
      arrays: The arguments.

    Raises:
      ValueError: There is no such implementation, or it is `"mosaic"` and cannot run. Where it can
        run in principle, this is known, and raised, when the function is compiled for a device.
    """
    check_implementation(implementation)
    if implementation == "mosaic":
        if why := why_not or _why_not_gpu():
            raise ValueError(f'`implementation="mosaic"` cannot run this: {why}. {_REMEDY}')
        return platform_dependent(*arrays, cuda=kernel, default=_refusing(general))
    if implementation == "xla" or why_not or _why_not_gpu() or _is_distributed(arrays[0]):
        return general(*arrays)
    if not (_gpus() or _compiles_for_gpu()):
        return general(*arrays)  # tracing kernels that nobody will run takes time, too
    return platform_dependent(*arrays, cuda=kernel, default=general)


def check_implementation(implementation):
    """Raises `ValueError` unless the implementation exists."""
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        known = " or ".join(f'"{name}"' for name in IMPLEMENTATIONS)
        raise ValueError(
            f"`implementation={implementation!r}` does not exist. Use None for the fastest one "
            f"where the step runs, or {known}."
        )


def why_not_array(x, block_size, *dtypes):
    """Why there are no kernels for a leaf and further arrays of these dtypes, or None."""
    if reason := why_not_blocks(block_size):
        return reason
    for dtype in (x.dtype, *dtypes):
        if dtype not in _DTYPES:
            return f"there are kernels for float32, bfloat16 and float16, not for {dtype}"
    if x.size < TILE:
        return f"an array of fewer than {TILE} elements does not fill a kernel"
    if x.size % block_size and x.size >= 2**31:
        return f"from 2**31 elements on the block size has to divide their number, {x.size}"
    return None


_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.uint8)


def describe():
    """`(implementation, why)` that None means for large 8-bit leaves in this process."""
    platform = jax.default_backend()
    if platform == "gpu" and not _gpus():
        return "xla", "the kernels are for GPUs of NVIDIA"
    if platform != "gpu":
        return "xla", f"the kernels are for GPUs of NVIDIA, and this is a {platform.upper()}"
    if why := _why_not_gpu():
        return "xla", why
    capability = _gpus()[0].compute_capability
    return "mosaic", f"the GPU's compute capability is {capability}, and kernels move fewer bytes"


@functools.cache
def _gpus():
    try:
        return jax.devices("cuda")
    except RuntimeError:
        return []


def _compiles_for_gpu():
    """Whether the mesh in use is of GPUs that need not be here, as when compiling ahead of time."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.platform in ("gpu", "cuda")


def _why_not_gpu():
    for gpu in _gpus():
        if float(gpu.compute_capability) < _OLDEST:
            return (
                f"the kernels need compute capability {_OLDEST}, and {gpu.device_kind} has "
                f"{gpu.compute_capability}"
            )
    return None


def _is_distributed(x):
    """Whether a type says that an array is divided over devices, of which kernels know nothing.

    Or that it differs between them: JAX then has no type for what a kernel writes in place.
    """
    return bool(jax.typeof(x).manual_axis_type.varying) or is_divided(x)


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


def _refusing(general):
    """A function with the results of `general` that cannot be compiled."""

    def refused(*arrays):
        out, tree = jax.tree.flatten(jax.eval_shape(general, *arrays))
        avals = tuple(jax.typeof(jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in out)
        return tree.unflatten(_refusal.bind(out=avals))

    return refused
