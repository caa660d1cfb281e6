"""Runs a function over a leaf as one Triton kernel."""

import re

import jax
import jax.numpy as jnp

from pallas_kernels.devices import devices
from pallas_kernels.tiled.running import (
    Backend,
    Small,
    Sums,
    array_of,
    is_marked,
    map_marked,
    with_references,
)
from pallas_kernels.triton import installed
from pallas_kernels.triton.kernel import Kernel, function, write
from pallas_kernels.triton.sizes import elements_of_a_thread
from pallas_kernels.triton.tile import WARPS, cut
from pallas_kernels.triton.tracing import Pointer, trace


def _cut(size, block, dtypes, spec=None):
    return cut(size, block, dtypes, elements_of_a_thread(spec, dtypes))


def run_leaf(name, body, cut, read, written, out, *, sums=0, piece=None, late=False):
    """As `Backend.run`: all of a leaf as one kernel."""
    if sums:
        out = dict(out, sums=Small(jax.ShapeDtypeStruct((cut.tiles, sums), jnp.float32)))
    start = None if piece is None else Small(piece.start.reshape(1))

    def run(refs):
        return _launch(name, body, cut, dict(read=read, written=refs, start=start), out, piece)

    made, written = with_references(run, written, out, late)
    made, written = (map_marked(array_of, x) for x in (made, written))
    return made, written, Sums(cut, made.pop("sums"), None) if sums else None


BACKEND = Backend(_cut, run_leaf)
"""The `Backend`."""


def _launch(name, body, cut, given, out, piece):
    """The new arrays, marked as `out` is."""
    kernel = _kernel(name, body, cut, (given, out), piece)
    types, tree = jax.tree.flatten(out)
    return tree.unflatten(call(kernel, jax.tree.leaves(given), tuple(types)))


def call(kernel: Kernel, operands, types):
    """The results, of these types, of a kernel that is given arrays and references."""
    platform = "rocm" if devices("rocm") else "cuda"
    made = installed.jax_triton().triton_call(
        *operands,
        kernel=function(kernel, platform),
        out_type=types,
        grid=kernel.cut.tiles,
        num_warps=warps(platform),
        name=kernel.name,
        compute_capability=_capability(),
        backend_options=options(platform),
    )
    return tuple(made)


def warps(platform):
    """Of a program. AMD's have twice the threads, and a row divided between them takes barriers."""
    return WARPS if platform == "cuda" else WARPS // 2


def options(platform):
    """What compilers are told."""
    # Products are added to without being rounded, as by XLA and Mosaic.
    fusion = dict(enable_fp_fusion=True)
    # XLA assembles what Triton writes with an assembler that may be older than Triton. This version
    # of PTX belongs to CUDA 12.8, and is the first that knows every GPU of now.
    return fusion | dict(ptx_version=87) if platform == "cuda" else fusion


def _capability():
    """Of the GPU that a program is compiled for; None of the one that is here."""
    device = jax.config.jax_default_device
    capability = getattr(device, "compute_capability", None)
    return None if capability is None else int(float(capability) * 10)


def _kernel(name, body, cut, arrays, piece) -> Kernel:
    """The kernel of a body; `arrays` are `given` and `out`, in the order of its parameters."""
    with_paths, _ = jax.tree_util.tree_flatten_with_path(arrays, is_leaf=is_marked)
    names = _names([path for path, _ in with_paths])
    pointers = [Pointer.of(n, x, cut) for n, (_, x) in zip(names, with_paths, strict=True)]
    tree = jax.tree.structure(map_marked(lambda x: 0, arrays))

    def body_of_tile(tile, read, written, out):
        out = dict(out)
        body(tile, read, written, out, out.pop("sums", None))

    def traced(is_whole):
        return trace(body_of_tile, cut, tree, pointers, piece, is_whole)

    tiles = [traced(True)] if cut.tiles > 1 or cut.is_whole else []
    tiles += [] if cut.is_whole else [traced(False)]
    return write(name, cut, pointers, tiles, None if piece is None else "start")


def _names(paths):
    """Names of parameters: where arrays are in what a body is given."""
    names: list[str] = []
    for path in paths:
        words = re.findall(r"\w+", jax.tree_util.keystr(path[1:]))
        name = "_".join(word for word in words if word not in ("read", "written"))
        names.append(f"{name}_{len(names)}" if name in names else name)
    return names
