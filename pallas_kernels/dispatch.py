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

    - `platform`: JAX's name of the only platform that it is for, or None.
    - `why_not_here()`: why it cannot run on the devices of this process, or None.
    - `why_not(leaf)`: why it cannot step a leaf, or None.
    - `step(leaf)` returns `Stepped`.
    - `moments(leaf)` returns `Halfway`, and `apply(leaf, ratio, tiles)` parameters or updates: the
      two halves that a norm over devices or pages needs. `adopted(leaf, halfway)` is another one's
      `Halfway` in the form of its own.
    """

    platform: str | None
    why_not_here: Callable[[], str | None]
    why_not: Callable[[Leaf], str | None]
    step: Callable[[Leaf], Stepped]
    moments: Callable[[Leaf], Halfway]
    apply: Callable[..., Any]
    adopted: Callable[[Leaf, Halfway], Halfway] = lambda leaf, halfway: halfway


@functools.cache
def _gpus():
    try:
        return jax.devices("cuda")
    except RuntimeError:
        return []


_OLDEST = 8.0
"""The compute capability that the instructions of Mosaic's kernels need."""


def _why_not_gpu():
    for gpu in _gpus():
        if float(gpu.compute_capability) < _OLDEST:
            return (
                f"the kernels need compute capability {_OLDEST}, and {gpu.device_kind} has "
                f"{gpu.compute_capability}"
            )
    return None


IMPLEMENTATIONS = {
    "mosaic": Implementation(
        "cuda",
        lambda: _why_not_gpu(),
        mosaic.why_not,
        mosaic.step,
        mosaic.moments,
        mosaic.apply,
        mosaic.adopted,
    ),
    "xla": Implementation(None, lambda: None, xla.why_not, xla.step, xla.moments, xla.apply),
}
"""By name, the fastest first. The last one runs everywhere."""

GENERAL = list(IMPLEMENTATIONS)[-1]
"""The one that runs everywhere."""


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


def has_kernel(leaf: Leaf) -> bool:
    """Whether a kernel steps a leaf where it is compiled for its platform."""
    return _chosen(leaf)[0] != GENERAL and not _is_distributed(leaf)


def _chosen(leaf):
    """The `choice` for a leaf, and what was asked for."""
    general = leaf.size < TILE or not leaf.coded
    implementation = GENERAL if general else leaf.spec.implementation
    why_not = {name: entry.why_not for name, entry in IMPLEMENTATIONS.items()}
    return choice(implementation, lambda name: why_not[name](leaf)), implementation


def _run(method, leaf, *args):
    chosen, implementation = _chosen(leaf)
    calls = {name: getattr(entry, method) for name, entry in IMPLEMENTATIONS.items()}

    def general(leaf, *args):
        out = calls[GENERAL](leaf, *args)
        return IMPLEMENTATIONS[chosen].adopted(leaf, out) if method == "moments" else out

    return call(chosen, implementation, {**calls, GENERAL: general}, (leaf, *args))


def choice(implementation, why_not) -> str:
    """The name of the implementation that is meant.

    Args:
      implementation: A key of `IMPLEMENTATIONS`, or None for the first that can run.
      why_not: Of a name, why that one cannot take these arrays, or None.

    Raises:
      ValueError: It cannot run.
    """
    if implementation is not None:
        if why := why_not(implementation) or IMPLEMENTATIONS[implementation].why_not_here():
            raise ValueError(
                f'`implementation="{implementation}"` cannot run this: {why}. {_REMEDY}'
            )
        return implementation
    here = compiles_for()
    for name, entry in IMPLEMENTATIONS.items():
        reachable = entry.platform is None or entry.platform in here
        if reachable and not (why_not(name) or entry.why_not_here()):
            return name
    return GENERAL


def call(chosen, implementation, calls, arrays):
    """Calls the function of an implementation on arrays, where they are compiled for its platform.

    Args:
      chosen: The `choice`.
      implementation: What was asked for. If it is a name, nothing else will do: this is known, and
        a `ValueError`, when the function is compiled for a device.
      calls: A function for each by name, all with results of the same types.
      arrays: The arguments.
    """
    platform, general = IMPLEMENTATIONS[chosen].platform, calls[GENERAL]
    if platform is None:
        return calls[chosen](*arrays)
    if implementation is None:
        if _is_distributed(arrays):
            return general(*arrays)
        return platform_dependent(*arrays, default=general, **{platform: calls[chosen]})
    refused = _refusing(chosen, general)
    return platform_dependent(*arrays, default=refused, **{platform: calls[chosen]})


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


def compiles_for():
    """The platforms that a program can be compiled for: tracing for others takes time, too.

    Those of GPUs that are here, or that the mesh in use names when compiling ahead of time.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    named = device is not None and device.platform in ("gpu", "cuda")
    return {"cuda"} if named or _gpus() else set()


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
_refusal = Primitive("implementation_cannot_run")
_refusal.multiple_results = True
_refusal.def_abstract_eval(lambda *, name, out: out)

_NEEDS = {"cuda": "an NVIDIA GPU"}


def _refuse(context, *, name, out):
    platforms = " and ".join(context.module_context.platforms)
    needed = _NEEDS.get(IMPLEMENTATIONS[name].platform or "", "another device")
    raise ValueError(
        f'`implementation="{name}"` needs {needed}, and this step is compiled for {platforms}. '
        f"{_REMEDY}"
    )


mlir.register_lowering(_refusal, _refuse)


def _refusing(name, general):
    """A function with the results of `general` that cannot be compiled."""

    def refused(*arrays):
        out, tree = jax.tree.flatten(jax.eval_shape(general, *arrays))
        avals = tuple(jax.typeof(jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in out)
        return tree.unflatten(_refusal.bind(name=name, out=avals))

    return refused
