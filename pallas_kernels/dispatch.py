"""Which code runs a step: decided for the device that it is compiled for.

Implementations are entries of a table. None takes the first that can run, with kernels before XLA,
as they move fewer bytes; a name takes that one or raises. But a step of leaves for which there is
nothing to gain, in float32 or of less than a tile, is always XLA's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.lax import platform_dependent

from pallas_kernels.arithmetic.shards import is_divided
from pallas_kernels.devices import devices
from pallas_kernels.leaf import Applied, Halfway, Leaf, Stepped
from pallas_kernels.mosaic import quantize as mosaic_quantize
from pallas_kernels.mosaic import step as mosaic_step
from pallas_kernels.tiled.rows import TILE
from pallas_kernels.triton import installed
from pallas_kernels.triton import quantize as triton_quantize
from pallas_kernels.triton import step as triton_step
from pallas_kernels.xla import quantize as xla_quantize
from pallas_kernels.xla import step as xla_step


class Implementation(NamedTuple):
    """Code for the steps of leaves, and for quantization."""

    platforms: tuple[str, ...]
    """JAX's names of those that it is for; none if it is for all."""
    needs: str
    """These, in words."""
    too_old: Callable[[], str | None]
    """Why it cannot run on the GPUs of this process, or None."""
    steps: Any
    """A module. What its functions are given, and return, is in `leaf`.

    - `why_not(leaf)`: why it cannot step a leaf, or None.
    - `step(leaf)` returns `Stepped`.
    - `moments(leaf)` returns `Halfway`, and `apply(leaf, ratio, tiles)` parameters or updates: the
      two halves that a norm over devices or pages needs. `adopted(leaf, halfway)` is another one's
      `Halfway` in the form of its own.
    """
    arrays: Any
    """A module.

    - `why_not(x, block_size, dtype)`: why it cannot take an array and one of that dtype, or None.
    - `quantize` and `dequantize`, as the public functions, of arguments that are checked.
    """
    not_installed: Callable[[], str | None] = lambda: None
    """Why it cannot be compiled for any device, or None."""

    def why_not_here(self) -> str | None:
        """Why it cannot run on the devices of this process, or None."""
        return self.not_installed() or self.too_old()

    @property
    def platform(self) -> str | None:
        """The one that programs of this process are compiled for, or could be."""
        reachable = [name for name in self.platforms if name in compiles_for()]
        return next(iter((*reachable, *self.platforms)), None)


def _gpus():
    return devices("cuda")


def _too_old(oldest):
    """Why kernels that need this compute capability cannot run here, or None."""
    for gpu in _gpus():
        if float(gpu.compute_capability) < oldest:
            return (
                f"it needs compute capability {oldest}, and {gpu.device_kind} has "
                f"{gpu.compute_capability}"
            )
    return None


IMPLEMENTATIONS = {
    "mosaic": Implementation(
        ("cuda",), "an NVIDIA GPU", lambda: _too_old(8.0), mosaic_step, mosaic_quantize
    ),
    "triton": Implementation(
        ("cuda", "rocm"),
        "an NVIDIA or AMD GPU",
        lambda: _too_old(7.5),
        triton_step,
        triton_quantize,
        lambda: installed.why_not(),
    ),
    "xla": Implementation((), "", lambda: None, xla_step, xla_quantize),
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
def apply(leaf: Leaf, ratio: Any, tiles: Any = None) -> Applied:
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

    def why_not(name):
        return IMPLEMENTATIONS[name].steps.why_not(leaf)

    return choice(implementation, why_not), implementation


def _run(method, leaf, *args):
    chosen, implementation = _chosen(leaf)
    calls = {name: getattr(entry.steps, method) for name, entry in IMPLEMENTATIONS.items()}

    def general(leaf, *args):
        out = calls[GENERAL](leaf, *args)
        return IMPLEMENTATIONS[chosen].steps.adopted(leaf, out) if method == "moments" else out

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
        reachable = not entry.platforms or here & {*entry.platforms}
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


def reasons() -> dict[str, str]:
    """Why each implementation cannot step large 8-bit leaves in this process; "" if it can."""
    platform = _platform()

    def reason(entry):
        if entry.platforms and platform not in entry.platforms:
            return f"it needs {entry.needs}, and this is {platform_in_words()}"
        return entry.why_not_here() or ""

    return {name: reason(entry) for name, entry in IMPLEMENTATIONS.items()}


def _platform():
    """JAX's name of the one that this process runs on."""
    platform = jax.default_backend()
    if platform != "gpu":
        return platform
    return "cuda" if _gpus() else "rocm"


def has_kernels() -> bool:
    """Whether there are kernels for the platform of this process, whether they can run or not."""
    return any(_platform() in entry.platforms for entry in IMPLEMENTATIONS.values())


def platform_in_words() -> str:
    """Which platform this process runs on."""
    platform = _platform()
    return _WORDS.get(platform, f"a {platform.upper()}")


def gpu_in_words() -> str:
    """What is known of the first GPU of this process."""
    (gpu, *_) = devices(_platform())
    verb = "has compute capability" if _platform() == "cuda" else "is a"
    return f"{gpu.device_kind} {verb} {gpu.compute_capability}"


_WORDS = {"cuda": "an NVIDIA GPU", "rocm": "an AMD GPU"}


def compiles_for():
    """The platforms that a program can be compiled for: tracing for others takes time, too.

    Those of GPUs that are here, or that the mesh in use names when compiling ahead of time.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    named = device is not None and device.platform in ("gpu", "cuda")
    if named or _gpus():
        return {"cuda"}
    return {"rocm"} if devices("rocm") else set()


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


def _refuse(context, *, name, out):
    platforms = " and ".join(context.module_context.platforms)
    raise ValueError(
        f'`implementation="{name}"` needs {IMPLEMENTATIONS[name].needs}, and this step is '
        f"compiled for {platforms}. {_REMEDY}"
    )


mlir.register_lowering(_refusal, _refuse)


def _refusing(name, general):
    """A function with the results of `general` that cannot be compiled."""

    def refused(*arrays):
        out, tree = jax.tree.flatten(jax.eval_shape(general, *arrays))
        avals = tuple(jax.typeof(jax.ShapeDtypeStruct(x.shape, x.dtype)) for x in out)
        return tree.unflatten(_refusal.bind(name=name, out=avals))

    return refused
