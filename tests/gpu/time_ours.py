"""The programs that are timed: copies, our optimizers in every form, and Optax's."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import optax

import optax_lamblion
import pallas_kernels
from optax_lamblion import StateOptions, apply_fused
from optax_lamblion.demo import shapes
from pallas_kernels import get_codec
from pallas_kernels.arithmetic import rules
from pallas_kernels.arithmetic.blocks import absmax_shape
from pallas_kernels.arithmetic.dither import Dither, even_digits
from pallas_kernels.arithmetic.params import ROUNDINGS
from pallas_kernels.arithmetic.step import Spec
from pallas_kernels.mosaic import step as mosaic
from pallas_kernels.mosaic.tile import INTERPRET
from pallas_kernels.triton import step as triton
from tests.gpu import floors
from tests.gpu.check_triton import why_not
from tests.gpu.records import Absent
from tests.gpu.timing import Program, wave
from tests.steps import on_arrays, scalars_of

DTYPES = {"bf16": (jnp.bfloat16, jnp.bfloat16), "f32": (jnp.float32, jnp.float32)}
"""Of parameters and gradients."""
MIXED = {"f32 p, bf16 g": (jnp.float32, jnp.bfloat16)}
_FLOORS = {"lion8bit": floors.lion8, "lamb8bit": floors.lamb8, "adamw8bit": floors.adamw8}
_NAMES = {"lion": "lion8bit", "lamb": "lamb8bit", "adam": "adamw8bit"}
_LAMB_LEAF_BYTES = 32
"""Bytes per parameter that the hungriest program needs: Optax's LAMB in float32."""


def programs(run):
    """All programs; what matters most comes first."""
    leaves = large_leaves(run)
    size = len(leaves) * math.prod(run.shape)
    names, by_xla = tuple(_FLOORS), ("lion8bit", "lamb8bit")
    yield from copies(run)
    for name, (dtype, pair) in itertools.product(names, DTYPES.items()):
        yield ours("large", leaves, name, dtype, pair, True, profile=True)
    gpt2, bf16 = model("gpt2-124m", run), DTYPES["bf16"]
    for name, rounding in itertools.product(names, ROUNDINGS[1:]):
        yield ours("large", leaves, name, "bf16", bf16, True, rounding=rounding)
    for name in names:
        yield ours("gpt2", gpt2, name, "bf16", bf16, True, profile=True)
    yield looped(gpt2)
    for by in ("ours", "optax"):
        yield clipped(leaves, by)
    for name, (dtype, pair) in itertools.product(names, DTYPES.items()):
        yield ours("large", leaves, name, dtype, pair, False)
    for (dtype, pair), mu in itertools.product(DTYPES.items(), ("f32", "bf16")):
        yield by_optax("large", leaves, "lion", dtype, pair, mu)
    for dtype, pair in DTYPES.items():
        yield by_optax("large", leaves, "lamb", dtype, pair, dtype)
        yield by_optax("large", leaves, "adamw", dtype, pair, dtype)
    for name, fused in itertools.product(by_xla, (True, False)):
        for dtype, pair in DTYPES.items():
            yield ours("large", leaves, name, dtype, pair, fused, "xla", profile=dtype == "bf16")
    for name in names:
        (dtype, pair), *_ = MIXED.items()
        yield ours("large", leaves, name, dtype, pair, True)
        yield ours("large", leaves, name, "bf16", bf16, True, codec="dynamic")
        yield ours("large", leaves, name, "bf16", bf16, True, count_skipped=True)
    yield ours("large", leaves, "lion8bit", "f32", DTYPES["f32"], True, codec="dynamic")
    kernels = functools.partial(mosaic.step, interpret=INTERPRET if run.interpret else None)
    for rule, per_thread in itertools.product((rules.LION, rules.LAMB, rules.ADAM), (8, 16)):
        yield tiled(leaves, rule, per_thread, "params", kernels)
    for per_thread in (8, 16):
        yield tiled(leaves, rules.LION, per_thread, "updates", kernels)
    yield from quantizing(run, size, (None, "xla") if run.interpret else ("mosaic", "xla"))
    if run.tiny:
        return
    # Many tensors of many shapes take their compilers a while, so they are the last ones.
    for name in names:
        yield ours("gpt2", gpt2, name, "bf16", bf16, False, profile=True)
        yield ours("gpt2", gpt2, name, "f32", DTYPES["f32"], True)
    yield ours("gpt2", gpt2, "lion8bit", "bf16", bf16, True, "xla", profile=True)
    yield by_optax("gpt2", gpt2, "lion", "bf16", bf16, "bf16", profile=True)
    for which in ("llama-8b", "resnet50"):
        tree = model(which, run)
        yield by_optax(which, tree, "lion", "bf16", bf16, "bf16")
        for name in names:
            yield ours(which, tree, name, "bf16", bf16, True, profile=True)


def by_triton(run):
    """What of `programs` tells most, by Triton's kernels."""
    if reason := why_not(run):
        raise Absent(reason)
    leaves, bf16 = large_leaves(run), DTYPES["bf16"]
    for (dtype, pair), name in itertools.product(DTYPES.items(), _FLOORS):
        profile = dtype == "bf16"
        yield ours("large", leaves, name, dtype, pair, True, "triton", profile=profile)
    yield ours("large", leaves, "lion8bit", "bf16", bf16, False, "triton")
    yield from quantizing(run, len(leaves) * math.prod(run.shape), ("triton",))
    for rule, per_thread in ((rules.LION, 16), (rules.LAMB, 8), (rules.LAMB, 32), (rules.ADAM, 16)):
        yield tiled(leaves, rule, per_thread, "params", triton.step, ", triton")
    gpt2 = model("gpt2-124m", run)
    yield ours("gpt2", gpt2, "lion8bit", "bf16", bf16, True, "triton", profile=True)


def large_leaves(run):
    """Equal large leaves, as many as asked for or as the memory holds."""
    stats = jax.devices()[0].memory_stats() or {}
    leaves, size = run.leaves, math.prod(run.shape)
    if limit := stats.get("bytes_limit"):
        leaves = max(1, min(leaves, int(0.8 * limit / (_LAMB_LEAF_BYTES * size))))
    return {f"leaf{i:02}": run.shape for i in range(leaves)}


def model(name, run):
    """Shapes of a model; of the largest one only the first two layers, with all that is around."""
    found = shapes.MODELS[name]()
    if name == "llama-8b":
        layer = re.compile(r"layer(\d+)/")
        found = {k: x for k, x in found.items() if not (m := layer.match(k)) or int(m[1]) < 2}
    if run.interpret:
        found = {k: tuple(min(n, 16) for n in x) for k, x in list(found.items())[:6]}
    return found


def copies(run):
    """What a GPU can do at best: the best of these is the ceiling."""
    size = 2**30 if not run.interpret else 2**12  # 4 GiB
    if stats := jax.devices()[0].memory_stats():
        size = min(size, 2 ** int(math.log2(stats["bytes_limit"] / 4 / 6)))
    array = functools.partial(jnp.arange, size, dtype=jnp.uint32)
    about = {"optimizer": "copy"}

    def copied(carry, constant):
        return jnp.copy(constant)  # a new array every time

    def added(carry, constant):
        return carry + jnp.uint32(1)

    yield Program("copy", copied, array, array, size, 8, about=about, profile=True, donate=False)
    yield Program("copy, add 1 in place", added, array, tuple, size, 8, about=about)
    yield Program(
        "copy, add 1 to another array", added, array, tuple, size, 8, about=about, donate=False
    )


def trees(leaves, pair):
    """`(params, grads)`: functions that make them."""
    p, g = pair

    def params():
        return {k: wave(x, p, i, 1.0) for i, (k, x) in enumerate(leaves.items())}

    def grads():
        return {k: wave(x, g, 0.5 + i, 2.0**-6) for i, (k, x) in enumerate(leaves.items())}

    return params, grads


def stepping(tx, params, fused):
    """`(step, carry)` of a `Program`."""

    def carry():
        made = params()
        return made, tx.init(made)

    def step(carry, grads):
        if fused:
            return apply_fused(tx, carry[0], grads, carry[1])
        updates, state = tx.update(grads, carry[1], carry[0])
        return optax.apply_updates(carry[0], updates), state

    return step, carry


def elements(leaves):
    """The number of parameters."""
    return sum(map(math.prod, leaves.values()))


def ours(
    what, leaves, name, dtype, pair, fused, implementation=None, codec="power", profile=False,
    count_skipped=False, rounding="nearest",
):  # fmt: skip
    """A `Program`: one step of an optimizer of this package."""
    options = StateOptions(
        implementation=implementation,
        codec=codec,
        count_skipped=count_skipped,
        param_rounding=rounding,
    )
    tx = getattr(optax_lamblion, name)(1e-4, weight_decay=0.1, options=options)
    params, grads = trees(leaves, pair)
    step, carry = stepping(tx, params, fused)
    mode = "apply_fused" if fused else "update"
    by = f", {implementation}" if implementation else ""
    words = [name, dtype, mode + by] + [codec] * (codec != "power") + ["count"] * count_skipped
    words += [rounding] * (rounding != "nearest")
    p, g = (jnp.dtype(x).itemsize for x in pair)
    about = {
        "what": what,
        "optimizer": name,
        "dtype": dtype,
        "mode": mode,
        "implementation": implementation,
        "codec": codec,
        "count_skipped": count_skipped,
        "param_rounding": rounding,
        "tensors": len(leaves),
    }
    return Program(
        f"{what}: {' '.join(words)}",
        step,
        carry,
        grads,
        elements(leaves),
        # Kernels move the same bytes, whatever compiles them.
        _FLOORS[name](g, p, mode + (by if implementation == "xla" else ""))
        + floors.RESIDUAL * (rounding == "compensated"),
        about=about,
        profile=profile,
    )


def clipped(leaves, by):
    """A `Program`: `lion8bit` behind a clip by the global norm, of this package or Optax's."""
    clip = {"ours": optax_lamblion, "optax": optax}[by].clip_by_global_norm(1.0)
    tx = optax.chain(clip, optax_lamblion.lion8bit(1e-4, weight_decay=0.1))
    params, grads = trees(leaves, DTYPES["bf16"])
    step, carry = stepping(tx, params, True)
    floor = floors.lion8(2, 2, "apply_fused") + floors.clip(2, by)
    about = {"what": "clipped", "optimizer": "lion8bit", "dtype": "bf16", "clip": by}
    name = f"large: lion8bit bf16 apply_fused, clip of {by}"
    return Program(name, step, carry, grads, elements(leaves), floor, about=about)


def tiled(leaves, rule, per_thread, emit, kernels, by=""):
    """Kernels in bfloat16 with so many elements in a thread: what a module `sizes` chooses from."""
    codecs = tuple(get_codec("power", slot.signed) for slot in rule.slots)
    spec = Spec(rule, codecs, 256, None, emit, per_thread=per_thread)
    scalars = scalars_of(rule, bias_correction=False, step_size=-1e-4)
    by_kernels = on_arrays(kernels)
    params, grads = trees(leaves, DTYPES["bf16"])

    def carry():
        made = {}
        for name, p in params().items():
            codes = tuple(jnp.zeros(p.shape, jnp.uint8) for _ in codecs)
            scale = jnp.zeros(absmax_shape(p.shape, 256))
            made[name] = p, codes, tuple(jnp.copy(scale) for _ in codecs)
        return made

    def step(carry, grads):
        dither, made = Dither(jnp.uint32(1), jnp.uint32(1)), {}
        dither = dither.scrambled(even_digits(rule, scalars))
        for name, (p, codes, absmaxes) in carry.items():
            seen = by_kernels(spec, grads[name], p, codes, absmaxes, scalars, dither)
            made[name] = seen.out, seen.slots, seen.absmaxes
        return made

    return Program(
        f"large: {rule.name} bf16 {emit}{by}, {per_thread} elements in a thread",
        step,
        carry,
        grads,
        elements(leaves),
        # Of updates as well: signs are written and read in place of parameters.
        _FLOORS[_NAMES[rule.name]](2, 2, "apply_fused"),
        about={"what": "tiles", "emit": emit, "optimizer": rule.name, "per_thread": per_thread},
    )


def looped(leaves, steps=20):
    """Many steps in one program: what a model of many tensors costs without Python between them."""
    program = ours("gpt2", leaves, "lion8bit", "bf16", DTYPES["bf16"], True)

    def step(carry, grads):
        return jax.lax.fori_loop(0, steps, lambda i, carry: program.step(carry, grads), carry)

    return Program(
        program.name + f", {steps} steps in a loop",
        step,
        program.carry,
        program.constant,
        program.elements,
        program.bytes_per_element,
        steps=steps,
        about=program.about | {"mode": "loop"},
        profile=True,
    )


def by_optax(what, leaves, name, dtype, pair, slot, profile=False):
    """A `Program`: one step of Optax's own optimizer with slots of a dtype."""
    slot_dtype = {"bf16": jnp.bfloat16, "f32": jnp.float32}[slot]
    if name == "lion":
        tx = optax.lion(1e-4, mu_dtype=slot_dtype, weight_decay=0.1)
        floor = floors.lion32
    else:  # whose slots have the dtype of the parameters
        tx = getattr(optax, name)(1e-4, weight_decay=0.1)
        floor = {"lamb": floors.lamb32, "adamw": floors.adam}[name]
    params, grads = trees(leaves, pair)
    step, carry = stepping(tx, params, False)
    p, g = (jnp.dtype(x).itemsize for x in pair)
    about = {"what": what, "optimizer": f"optax.{name}", "dtype": dtype, "tensors": len(leaves)}
    return Program(
        f"{what}: optax.{name} {dtype}, {slot} slots",
        step,
        carry,
        grads,
        elements(leaves),
        floor(g, p, jnp.dtype(slot_dtype).itemsize),
        about=about,
        profile=profile,
    )


def quantizing(run, size, implementations):
    """`quantize` and `dequantize`, which return new arrays."""
    rows = max(size // 4 // run.shape[1], 1)
    shape = (rows, run.shape[1])
    size = math.prod(shape)
    kinds = itertools.product(DTYPES.items(), implementations)
    for (dtype, (x_dtype, _)), implementation in kinds:
        itemsize = jnp.dtype(x_dtype).itemsize
        about = {"dtype": dtype, "implementation": implementation}

        def quantize(carry, x, implementation=implementation):
            return pallas_kernels.quantize(x, implementation=implementation)

        def codes(shape=shape):
            return jnp.full(shape, 77, jnp.uint8), jnp.ones((shape[0], shape[1] // 256))

        def dequantize(carry, stored, implementation=implementation, dtype=x_dtype):
            return pallas_kernels.dequantize(*stored, dtype=dtype, implementation=implementation)

        x = functools.partial(wave, shape, x_dtype, 0.0, 1.0)
        moved = itemsize + 1 + 4 / 256
        yield Program(
            f"quantize {dtype} {implementation}",
            *(quantize, codes, x, size, moved),
            about=about | {"optimizer": "quantize"},
        )
        yield Program(
            f"dequantize {dtype} {implementation}",
            *(dequantize, x, codes, size, moved),
            about=about | {"optimizer": "dequantize"},
        )
