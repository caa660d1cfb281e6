"""What is measured: for each sweep its points, each with all that is known of every optimizer."""

import json
import os
import subprocess
import sys

import jax

from benchmarks.growth import devices
from optax_lamblion import StateOptions
from optax_lamblion.demo import contest, shapes, timing, workloads
from optax_lamblion.demo.optimizers import OPTIMIZERS

# Paged steps of one leaf are compared with the resident one.
_PAGED_LOG2 = 24


def leaves(counts, most):
    """Tiny leaves, more and more of them; of LAMB and AdamW not more than `most`."""
    for n in counts:
        arrays = contest.Arrays(workloads.tiny_leaves(n), "float32")
        for family in contest.FAMILIES if n <= most else contest.FAMILIES[:1]:
            yield from _turns(n, contest.of_family(family, arrays, (8,), _FUSED), arrays, 1.0)


def sizes(logs):
    """One leaf, larger and larger."""
    for log2 in logs:
        arrays = contest.Arrays(workloads.leaf(log2), "float32")
        for family in contest.FAMILIES:
            entries = contest.of_family(family, arrays, (8,), _FUSED)
            yield from _turns(2**log2, entries, arrays, 2.0)


def largest(log2):
    """A leaf that would not fit: compiled, and its memory read off the program."""
    leaf = shapes.as_structs(workloads.leaf(log2))
    for family in contest.FAMILIES:
        for name, way in ((f"optax.{family}", contest.UPDATE), (f"{family}8bit", *_FUSED)):
            tx = contest.optimizer(OPTIMIZERS[name])
            state = jax.eval_shape(tx.init, leaf)
            program = timing.compiled(timing.stepping(tx, way), (leaf, state), leaf)
            yield {
                "x": 2**log2,
                "optimizer": name,
                "state_bytes_per_parameter": timing.bytes_of(state) / 2**log2,
                "temporary_bytes": program.temporary_bytes,
                "trace_seconds": program.trace_seconds,
                "compile_seconds": program.compile_seconds,
            }


def pages(page_bytes):
    """Lion's state in host memory, in pages of several sizes; the first has it on the device."""
    arrays = contest.Arrays(workloads.leaf(_PAGED_LOG2), "float32")
    entries = [arrays.entry(OPTIMIZERS["lion8bit"], *_FUSED)]
    for n in page_bytes:
        options = StateOptions(page_bytes=n, page_min_size=0)
        entries.append(arrays.entry(OPTIMIZERS["paged_lion8bit"], *_FUSED, options=options))
    times = timing.take_turns([x.contestant for x in entries], seconds=10.0)
    found = contest.findings(entries, times, arrays.elements)
    for n, finding in zip((0, *page_bytes), found, strict=True):
        yield {"x": n, "parameters": arrays.elements, **finding}


def on_devices(counts, log2):
    """The same leaf on more and more virtual devices of this machine, which share its cores."""
    for n in counts:
        flags = f"--xla_force_host_platform_device_count={n}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        module = devices.__name__
        command = [sys.executable, "-m", module, str(n), str(log2)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        for finding in json.loads(done.stdout):
            yield {"x": n, **finding}


_FUSED = (contest.APPLY_FUSED,)


def _turns(x, entries, arrays, seconds):
    times = timing.take_turns([entry.contestant for entry in entries], seconds=seconds)
    for finding in contest.findings(entries, times, arrays.elements):
        yield {"x": x, "parameters": arrays.elements, **finding}


def warm_up():
    """What JAX does once in a process, before anything is traced by the clock."""
    arrays = contest.Arrays({"leaf": (64, 256), "tiny": (64,)}, "float32")
    for family in contest.FAMILIES:
        contest.of_family(family, arrays, (8,), _FUSED)
