"""How a step is timed: on donated state, step after step, waiting once for many of them.

A step needs what the one before it wrote, so none overlaps another, and the host is ahead of the
GPU where a step takes longer than its dispatch. What a GPU is busy with, the profiler says for some
programs afterwards.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import glob
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tests.gpu import peak
from tests.gpu.paging import abstract
from tests.gpu.records import Skipped

_WARM_UP = 3
_SAMPLES = 15
_SAMPLE_SECONDS = 0.04
_PROFILED_STEPS = 5
_COMPILERS = 8
"""Threads. XLA's compilers do not hold Python's lock."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A step to be timed.

    `step(carry, constant)` returns the next carry. `carry()` and `constant()` make their arrays, or
    shapes under `jax.eval_shape`. Some of them may be in host memory.
    """

    name: str
    step: Callable[[Any, Any], Any]
    carry: Callable[[], Any]
    constant: Callable[[], Any]
    elements: int
    """What times and bytes are given per, over all steps that one call makes."""
    bytes_per_element: float
    steps: int = 1
    """That one call makes."""
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    profile: bool = False
    donate: bool = True
    eager: bool = False
    """Whether it is called as it is, and not compiled."""


def wave(shape, dtype, seed, scale):
    """An array of many different numbers that costs nothing to make."""
    return _wave(jnp.float32(seed), shape, jnp.dtype(dtype), scale)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _wave(seed, shape, dtype, scale):
    angle = seed
    for axis, step in enumerate((0.37, 1.7, 2.3, 0.91)[: len(shape)]):
        angle = angle + step * jax.lax.broadcasted_iota(jnp.float32, shape, axis)
    return (scale * jnp.sin(angle)).astype(dtype)


def measure(part, run, records):
    """Compiles the programs of a part together, then times them one by one."""
    common = dict(peer=True) if part.peer else {}
    samples = 3 if run.quick else _SAMPLES
    programs: list[Program] = []
    try:
        programs = list(part.items(run))
    except Exception as error:  # a peer that is not there
        # Raised again where it becomes a record.
        records.do("timing", part.name, functools.partial(_raise, error), **common)
    programs = [program for program in programs if not _known(program, records)]
    for first in range(0, len(programs), _BATCH):
        batch = programs[first : first + _BATCH]
        if records.left() <= 0:  # compilers need not start
            for program in batch:
                records.do("timing", program.name, dict, **program.about | common)
            continue
        threads = 2 if run.interpret else _COMPILERS
        # Peers use what JAX has deprecated. (The filter is that of all threads.)
        with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(threads) as pool:
            warnings.simplefilter("ignore")
            compiled = [pool.submit(_compiled, program) for program in batch]
            concurrent.futures.wait(compiled)  # for the host to have nothing else to do
        profiled = {}
        for program, future in zip(batch, compiled, strict=True):
            about = program.about | common
            call = functools.partial(_measure, program, future, samples)
            records.do("timing", program.name, call, **about)
            if program.profile and not future.exception():
                profiled[program.name] = future.result()
        for program in batch:
            if step := profiled.get(program.name):
                records.do(
                    "profile", program.name, functools.partial(_profile, program, step), **common
                )


_BATCH = 16


def _known(program, records):
    kinds = ("timing", "profile") if program.profile else ("timing",)
    return all(records.knows(kind, program.name) for kind in kinds)


def _raise(error):
    raise error


def _compiled(program):
    if program.eager:
        return program.step
    carry, constant = abstract(program.carry), abstract(program.constant)
    step = jax.jit(program.step, donate_argnums=0 if program.donate else ())
    return step.lower(carry, constant).compile()


def _arrays(program):
    return jax.block_until_ready((program.carry(), program.constant()))


def _measure(program, future, samples):
    try:
        step = future.result()
    except Exception:  # perhaps the threads got into each other's way
        step = _compiled(program)
    memory = None if program.eager else step.memory_analysis()
    before = peak.so_far()
    carry, constant = _arrays(program)
    for _ in range(_WARM_UP):
        carry = step(carry, constant)
    jax.block_until_ready(carry)
    estimate, carry = _sample(step, carry, constant, 3)
    calls = min(max(math.ceil(_SAMPLE_SECONDS / max(estimate, 1e-7)), 3), 400)
    times = []
    for _ in range(samples):
        seconds, carry = _sample(step, carry, constant, calls)
        times.append(1e3 * seconds / program.steps)
    after = peak.so_far()
    facts = {
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        # Of this program, unless another one of its process needed more, or its compiler did.
        "peak_bytes": after,
        "peak_is_its_own": None if before is None else after > before,
    }
    return facts | summary(times, program.elements, program.bytes_per_element, calls)


def _sample(step, carry, constant, calls):
    start = time.perf_counter()
    for _ in range(calls):
        carry = step(carry, constant)
    jax.block_until_ready(carry)
    return (time.perf_counter() - start) / calls, carry


def summary(times, elements, bytes_per_element, calls):
    """What is recorded of times in milliseconds."""
    median = statistics.median(times)
    return {
        "median_ms": median,
        "min_ms": min(times),
        "p90_ms": sorted(times)[min(math.ceil(0.9 * len(times)), len(times)) - 1],
        "samples_ms": [round(x, 6) for x in times],
        "calls_per_sample": calls,
        "elements": elements,
        "bytes_per_element": bytes_per_element,
        "bytes": round(elements * bytes_per_element),
        "ms_per_1e9_elements": median / elements * 1e9,
        "gb_per_s": elements * bytes_per_element / median / 1e6,
    }


def _profile(program, step):
    """Kernels of a step, and how long the GPU is busy with them."""
    carry, constant = _arrays(program)
    carry = jax.block_until_ready(step(carry, constant))
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder)
        try:
            for _ in range(_PROFILED_STEPS):
                carry = step(carry, constant)
            jax.block_until_ready(carry)
        finally:
            jax.profiler.stop_trace()
        paths = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        if not paths:
            raise Skipped("the profiler wrote nothing")
        return _kernels(jax.profiler.ProfileData.from_file(paths[0]), program.steps)


def _kernels(profile, steps_per_call):
    counts, times = collections.Counter(), collections.Counter()
    first, last = math.inf, -math.inf
    for plane in profile.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):  # the others tell the same in other words
                continue
            for event in line.events:
                counts[event.name] += 1
                times[event.name] += event.duration_ns
                first = min(first, event.start_ns)
                last = max(last, event.start_ns + event.duration_ns)
    if not counts:
        raise Skipped("the profile shows no GPU")
    steps = _PROFILED_STEPS * steps_per_call
    kernels = [
        {"name": name[:120], "launches": counts[name] / steps, "us": ns / 1e3 / steps}
        for name, ns in times.most_common(40)
    ]
    return {
        "busy_ms": sum(times.values()) / 1e6 / steps,
        "from_first_to_last_ms": (last - first) / 1e6 / steps,
        "launches": sum(counts.values()) / steps,
        "kernels": kernels,
    }
