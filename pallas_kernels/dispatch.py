"""Which code runs a step: decided for the device that it is compiled for.

Implementations are entries of a table. None takes the first that can run, with kernels before XLA,
as they move fewer bytes; a name takes that one or raises. But a step of leaves for which there is
nothing to gain, in float32 or of less than a tile, is always XLA's.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.lax import platform_dependent

from pallas_kernels.arithmetic.shards import is_divided
from pallas_kernels.leaf import Halfway, Leaf, Stepped
from pallas_kernels.mosaic import step as mosaic
from pallas_kernels.mosaic.tile import TILE
from pallas_kernels.xla import step as xla


class Implementation(NamedTuple):
    """Code for the steps of leaves. What it is given, and returns, is in `leaf`.

    - `why_not(leaf)`: None if it can step a leaf, or the reason in words.
    - `step(leaf)` returns `Stepped`.
    - `moments(leaf)` returns `Halfway`, and `apply(leaf, ratio, tiles)` parameters or updates: the
      two halves that a norm over devices or pages needs. `unknown_tiles(leaf)` stands for what only
      its own `moments` can tell `apply`.
    """

    why_not: Callable[[Leaf], str | None]
    step: Callable[[Leaf], Stepped]
    moments: Callable[[Leaf], Halfway]
    apply: Callable[..., Any]
    unknown_tiles: Callable[[Leaf], Any] = lambda leaf: None


IMPLEMENTATIONS = {
    "mosaic": Implementation(
        mosaic.why_not, mosaic.step, mosaic.moments, mosaic.apply, mosaic.unknown_tiles
    ),
    "xla": Implementation(xla.why_not, xla.step, xla.moments, xla.apply),
}
"""By name, the fastest first. The last one runs everywhere."""

_OLDEST = 8.0
"""The compute capability that the instructions of the kernels need."""


# Inner jits: steps of equal shape share one trace and one lowering.


@jax.jit
def step(leaf: Leaf) -> Stepped:
    """One step of a leaf, or of a piece of one by a rule without a trust ratio."""
    return _run("step", leaf)


@jax.jit
def moments(leaf: Leaf) -> Halfway:
    """The new state of a leaf of which other devices have parts, or of a piece."""
    return _run("moments", leaf)


@jax.jit
def apply(leaf: Leaf, ratio: Any, tiles: Any = None) -> Any:
    """What a leaf makes of its new state, which is in its slots, with its trust ratio.

    `tiles` are `Halfway.tiles`, or None if nothing is known.
    """
    return _run("apply", leaf, ratio, tiles)


def _run(method, leaf, *args):
    kernels, general = IMPLEMENTATIONS["mosaic"], IMPLEMENTATIONS["xla"]
    why_not = kernels.why_not(leaf)

    def by_xla(leaf, *args):
        out = getattr(general, method)(leaf, *args)
        if method == "moments" and why_not is None:
            out = out._replace(tiles=kernels.unknown_tiles(leaf))
        return out

    implementation = leaf.spec.implementation
    if leaf.size < TILE or not leaf.coded:
        implementation = "xla"
    return choose(implementation, why_not, getattr(kernels, method), by_xla, (leaf, *args))


def choose(implementation, why_not, kernel, general, arrays):
    """Calls the function that an implementation means, `kernel` or `general`, on the arrays.

    Args:
      implementation: A key of `IMPLEMENTATIONS`, or None for the kernel where it can run.
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
    if implementation == "xla" or why_not or _why_not_gpu() or _is_distributed(arrays):
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


def _is_distributed(arrays):
    """Whether the type of the first array says that it is divided over devices.

    Kernels know nothing of that. Or that it differs between them: JAX then has no type for what a
    kernel writes in place.
    """
    x = jax.tree.leaves(arrays)[0]
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
