"""Compiles a function for a GPU that is not there, and says what became of it."""

import collections
import dataclasses
import re
import warnings

import jax
from jax.sharding import NamedSharding, PartitionSpec

from tests.deviceless import hlo, launches, transfers

_COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def compile_for(mesh, fn, *args, donate=(), out_shardings=None):
    """The executable of `jax.jit(fn)` for the devices of a mesh.

    Args:
      mesh: From `targets.make_mesh`.
      fn: The function.
      *args: Trees of `jax.ShapeDtypeStruct`. Those without a sharding are on every device, or in
        host memory if their type says so.
      donate: Positions of arguments that may be overwritten.
      out_shardings: As of `jax.jit`.
    """
    # Compile-only devices list no memories: a sharding on the concrete mesh would lose its memory
    # kind. On the abstract mesh it keeps it.
    everywhere = NamedSharding(mesh.abstract_mesh, PartitionSpec())

    def place(x):
        if x.sharding is not None:
            return x
        on_host = jax.typeof(x).memory_space == jax.memory.Space.Host
        sharding = everywhere.with_memory_kind("pinned_host") if on_host else everywhere
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    step = jax.jit(fn, donate_argnums=donate, out_shardings=out_shardings)
    # The mesh is what XLA compiles for. The default device is where Mosaic looks up the compute
    # capability; without it Mosaic assumes 9.0.
    with (
        jax.default_device(mesh.devices.flat[0]),
        jax.set_mesh(mesh),
        warnings.catch_warnings(),
    ):
        # A gradient is donated so that it may be overwritten on the way, although no result has
        # its place in the end.
        warnings.filterwarnings("ignore", "Some donated buffers were not usable", UserWarning)
        traced = step.trace(*jax.tree.map(place, args))
        return traced.lower(lowering_platforms=("cuda",)).compile()


def facts(executable, mosaic=None):
    """What a compiled program costs, as plain values.

    Args:
      executable: From `compile_for`.
      mosaic: `mosaic.Kernel`s that were compiled for it; see `launches.launches`.

    Returns:
      A dict of

      - `temp`, `alias`, `arguments`, `outputs`: bytes on one device. `alias` are those of the
        arguments that results are written over.
      - `host`: the same of the host's memory.
      - `transfers`: see `transfers.transfers`.
      - `host_compute`: whether the host's processor has to compute something.
      - `collectives`: how many of each.
      - `launches`: `launches.Launch` as dicts, in order.
      - `control`: loops and branches in ENTRY. Their launches are not among `launches`.
    """
    memory, text = executable.memory_analysis(), executable.as_text()
    program = hlo.parse(text)
    launched, control = launches.launches(program, mosaic)
    return {
        "temp": memory.temp_size_in_bytes,
        "alias": memory.alias_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "host": {
            "temp": memory.host_temp_size_in_bytes,
            "alias": memory.host_alias_size_in_bytes,
            "arguments": memory.host_argument_size_in_bytes,
            "outputs": memory.host_output_size_in_bytes,
        },
        "transfers": transfers.transfers(program),
        "host_compute": '_xla_compute_type="host"' in text,
        "collectives": dict(collections.Counter(_COLLECTIVE.findall(text))),
        "launches": [dataclasses.asdict(x) for x in launched],
        "control": control,
    }


def bytes_moved(facts):
    """Bytes of main memory that the kernels of a program read and write.

    Raises:
      ValueError: The program has a loop or a branch, so the number is not in its text.
    """
    _refuse_control(facts)
    return sum(x["reads"] + x["writes"] for x in facts["launches"])


def scalar_bytes(name):
    """What the state of an optimizer has beside arrays: a count and, in 8 bits, a layout."""
    return 8 if "8bit" in name else 4


def copies(facts, at_least=1):
    """Launches that only move elements and write so many bytes or more.

    XLA adds them to protect an argument that was not donated, or a value that is needed again.
    """
    _refuse_control(facts)
    return [x for x in facts["launches"] if x["kind"] == "copy" and x["writes"] >= at_least]


def mosaic_kernels(facts):
    """Names of the Mosaic kernels, in the order of their launches."""
    _refuse_control(facts)
    return [x["name"] for x in facts["launches"] if x["kind"] == "mosaic"]


def triton_kernels(facts):
    """Names of the Triton kernels, in the order of their launches."""
    _refuse_control(facts)
    return [x["name"] for x in facts["launches"] if x["kind"] == "triton"]


def _refuse_control(facts):
    if facts["control"]:
        raise ValueError(
            f"The program has a {' and a '.join(facts['control'])}, and what happens inside is not "
            "counted. Give the harness the body alone."
        )
