"""In place means in place, and leaves beyond 2**31 elements are leaves like others."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optax_lamblion
from optax_lamblion import StateOptions, apply_fused
from pallas_kernels.arithmetic import rules
from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.arithmetic.dither import Dither, even_digits
from pallas_kernels.arithmetic.shards import Place
from pallas_kernels.arithmetic.step import Spec
from pallas_kernels.mosaic import step as mosaic
from pallas_kernels.mosaic.tile import INTERPRET
from pallas_kernels.xla import step as xla
from tests import oracles
from tests.gpu.comparing import CUBE_TIE
from tests.gpu.records import Skipped
from tests.steps import on_arrays, scalars_of

MIB = 2**20


def checks(run):
    """`(name, function)`. The peak is watched first: nothing makes it go down again."""
    for name in ("lion8bit", "lamb8bit"):
        yield f"a donated step is in place: {name}", functools.partial(_in_place, run, name)
    for rule in (rules.LION, rules.LAMB):
        yield f"more than 2**31 elements: {rule.name}", functools.partial(_huge, run, rule)


def _in_place(run, name):
    if run.interpret:
        raise Skipped("the interpreter copies")
    device = jax.devices()[0]
    tx = getattr(optax_lamblion, name)(
        1e-3, weight_decay=0.1, options=StateOptions(implementation="mosaic")
    )
    # Larger than what the checks before have used, for the peak to show it.
    shape = (16384, 8192 * (1 if name == "lion8bit" else 3))
    step = jax.jit(functools.partial(apply_fused, tx), donate_argnums=(0, 2))
    abstract = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    compiled = step.lower(abstract, abstract, jax.eval_shape(tx.init, abstract)).compile()
    params = jnp.ones(shape, jnp.bfloat16)
    grads = jnp.full(shape, 0.01, jnp.bfloat16)
    state = jax.block_until_ready(tx.init(params))
    before = device.memory_stats()
    at = {key: x.unsafe_buffer_pointer() for key, x in _large(params, state).items()}
    for _ in range(3):
        params, state = jax.block_until_ready(compiled(params, grads, state))
    now = {key: x.unsafe_buffer_pointer() for key, x in _large(params, state).items()}
    moved = [key for key in at if at[key] != now[key]]
    assert not moved, f"copied instead of written in place: {moved}"
    memory: Any = compiled.memory_analysis()
    facts = {
        "temporary_bytes": memory.temp_size_in_bytes,
        "arguments_bytes": memory.argument_size_in_bytes,
    }
    if before is None:
        return facts | {"peak": "this device does not tell"}
    after = device.memory_stats()
    # Codes and scales were made one after the other, so the peak was what was in use.
    facts["peak_above_use_bytes"] = after["peak_bytes_in_use"] - before["bytes_in_use"]
    facts["peak_before_bytes"] = before["peak_bytes_in_use"] - before["bytes_in_use"]
    grown = after["peak_bytes_in_use"] - max(before["peak_bytes_in_use"], before["bytes_in_use"])
    facts["peak_grew_bytes"] = grown
    # Three sums for each tile, of 1024 elements at least, and two of them put together; scalars;
    # and what the allocator rounds up.
    most = 16 * MIB + 20 * math.prod(shape) // 1024
    assert grown <= most, f"the peak grew by {grown / MIB:.0f} MiB"
    return facts


def _large(params, state):
    leaves = {"params": params}
    for field, x in state._asdict().items():
        if getattr(x, "size", 0) >= 4096:
            leaves[field] = x
    return leaves


# Inputs are formulas of row and column, so that any rows of them can be made again.


def _wave(first, rows, columns, seed, scale, dtype):
    row = (first + jax.lax.broadcasted_iota(jnp.int32, (rows, columns), 0)).astype(jnp.float32)
    column = jax.lax.broadcasted_iota(jnp.float32, (rows, columns), 1)
    return (scale * jnp.sin(seed + 0.37 * (row % 8191) + 1.7 * column)).astype(dtype)


def _code(first, rows, columns, slot):
    row = first + jax.lax.broadcasted_iota(jnp.int32, (rows, columns), 0)
    column = jax.lax.broadcasted_iota(jnp.int32, (rows, columns), 1)
    return ((0 if slot.signed else 40) + (7 * row + 3 * column) % 101).astype(jnp.uint8)


def _make(rule, first, rows, columns):
    g = _wave(first, rows, columns, 0.0, 0.01, jnp.bfloat16)
    p = _wave(first, rows, columns, 1.0, 1.0, jnp.bfloat16)
    codes = tuple(_code(first, rows, columns, slot) for slot in rule.slots)
    absmaxes = tuple(
        jnp.full((rows, columns // 256), 0.01 if slot.signed else 1e-4, jnp.float32)
        for slot in rule.slots
    )
    return g, p, codes, absmaxes


def _huge(run, rule):
    rows, columns = (2**23 + 17, 256) if not run.interpret else (2**5 + 17, 256)
    size, slots = rows * columns, len(rule.slots)
    need = size * (4 + slots * (1 + 4 / 256))
    if not run.interpret:
        stats = jax.devices()[0].memory_stats() or {}
        free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
        if free < 1.15 * need:
            raise Skipped(f"needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
    numbers = dict(b1=0.9, b2=0.99, bias_correction=False, weight_decay=0.1, step_size=-0.125)
    s = jax.tree.map(jnp.float32, scalars_of(rule, **numbers))
    codecs = tuple(get_codec("power", slot.signed) for slot in rule.slots)
    spec = Spec(rule, codecs, 256, "decoupled", "params")
    dither = Dither(jnp.uint32(3), jnp.uint32(99))
    dither = dither.scrambled(even_digits(rule, s))
    step = functools.partial(mosaic.step, interpret=INTERPRET if run.interpret else None)
    make = jax.jit(functools.partial(_make, rule), static_argnums=(1, 2))
    g, p, codes, absmaxes = make(0, rows, columns)
    # The old parameters are a formula, so nothing but one set of them need be kept.
    step = jax.jit(functools.partial(on_arrays(step), spec), donate_argnums=(1, 2, 3))
    p, codes, absmaxes, _ = step(g, p, codes, absmaxes, s, dither)
    del g

    part = min(4096, rows)
    general = jax.jit(functools.partial(on_arrays(xla.step), spec))
    seen = {"elements": size, "bytes": need}
    most = rows - part
    firsts = sorted({0, most, *(x for x in (2**22 - 8, 2**23 - 2048) if 0 < x < most)})
    moved, length = 0.0, 0.0
    for first in firsts:
        given = make(first, part, columns)
        rest = tuple(x[first : first + part] for x in (p, *codes, *absmaxes))
        new_p, new_codes, new_absmaxes = rest[0], rest[1 : 1 + slots], rest[1 + slots :]
        place = Place((rows, columns), (part, columns), (jnp.uint32(first), None))
        placed = dither._replace(place=place)
        expected_p, expected, expected_absmaxes, _ = general(*given, s, placed)
        for i, slot in enumerate(rule.slots):
            a, b = np.asarray(new_absmaxes[i]), np.asarray(expected_absmaxes[i])
            np.testing.assert_allclose(a, b, rtol=2.0**-20, err_msg=f"{slot.name} from row {first}")
            x, y = np.asarray(new_codes[i]), np.asarray(expected[i])
            differ = x != y
            seen[f"{slot.name}_differ_from_row_{first}"] = int(differ.sum())
            apart = np.subtract(*(oracles.ranks(z, "power", slot.signed) for z in (x, y)))
            assert np.abs(apart).max() <= 1, f"{slot.name} from row {first}: off by more than one"
            assert differ.mean() <= 4 * CUBE_TIE, f"{slot.name} from row {first}: {differ.sum()}"
        old_p = np.asarray(given[1].astype(jnp.float32), np.float64)
        got_p = np.asarray(new_p.astype(jnp.float32), np.float64)
        if rule.reads == "old":
            want = np.asarray(expected_p.astype(jnp.float32), np.float64)
            off = np.abs(got_p - want) > 2.0**-8 * np.abs(want) + 1e-30
            assert not off.any(), f"{off.sum()} parameters off from row {first}"
        else:
            # With other codes, or another norm, another step, but along the same direction.
            direction = _direction(spec, given, new_codes, new_absmaxes, s)
            change = got_p - old_p
            cosine = np.sum(change * direction) / np.sqrt(np.sum(change**2) * np.sum(direction**2))
            seen[f"cosine_from_row_{first}"] = float(cosine)
            assert cosine < -0.999, f"from row {first} the step has another direction: {cosine}"
            moved, length = moved + float(np.sum(change**2)), length + float(np.sum(old_p**2))
    if rule.ratio and not run.interpret:
        # The identity of LAMB, |dp| = lr |p|; the sampled rows are like all others.
        ratio = math.sqrt(moved / length) / 0.125
        seen["step_over_lr_times_norm"] = ratio
        assert abs(ratio - 1) < 0.02, f"|dp| is {ratio:.4f} of lr |p|"
    return seen


def _direction(spec, given, codes, absmaxes, s):
    p = np.asarray(given[1].astype(jnp.float32), np.float64)
    m, v = (
        oracles.decode(np.asarray(c), np.asarray(a), 256, "power", slot.signed)
        for c, a, slot in zip(codes, absmaxes, spec.rule.slots, strict=True)
    )
    return m / (np.sqrt(v) + float(s.own.eps)) + float(s.weight_decay) * p
