"""Whole kernels: the source around a body, and the function that it is."""

import itertools
import linecache
from typing import NamedTuple

from pallas_kernels.arithmetic.pieces import GRAIN
from pallas_kernels.triton.rules import Value
from pallas_kernels.triton.tile import Cut
from pallas_kernels.triton.tracing import Pointer, Traced
from pallas_kernels.triton.writer import INDENT, Reference, Writer


class Kernel(NamedTuple):
    """A kernel as source."""

    name: str
    source: str
    pointers: tuple[Pointer, ...]
    """Its parameters."""
    cut: Cut


def write(name, cut: Cut, pointers, tiles: list[Traced], start: str | None) -> Kernel:
    """The kernel that runs a body over a leaf.

    Args:
      name: Of the kernel.
      cut: How the leaf is cut.
      pointers: `Pointer`.
      tiles: The body for tiles that are whole, and for the last one if it is not.
      start: The name of the pointer to the grain where a piece begins; None of a whole leaf.
    """
    head = [
        "tile = tl.program_id(0)",
        f"first = tile.to(tl.int64) * {cut.rows}",
        f"row = tl.arange(0, {cut.rows})",
        f"shape: tl.constexpr = {cut.shape}",
        f"column = tl.arange(0, {cut.shape[0]})[:, None, None] * {cut.span}",
        f"column += tl.arange(0, {cut.span})[None, None, :]",
        f"at = row[None, :, None] * {cut.block} + column",
        # So that threads hold the same elements of every array, whatever its dtype.
        f"at = tl.max_contiguous(tl.multiple_of(at, (1, 1, {cut.vector})), (1, 1, {cut.vector}))",
    ]
    if start is not None:
        head.append(f"in_leaf = first + tl.load({start}).to(tl.int64) * {GRAIN // cut.block}")
    for pointer in pointers:
        first = "in_leaf" if pointer.of_piece else "first"
        if pointer.kind == "elements":
            head.append(f"{pointer.name} += {first} * {cut.block}")
        elif pointer.kind == "blocks":
            head.append(f"{pointer.name} += {first}")
    lines, names = [INDENT + x for x in head], itertools.count()

    def body(traced, depth):
        writer = Writer(depth, names, (cut.rows, cut.block))
        if not traced.is_whole:
            _inside(writer, cut)
        references = [_reference(pointer, traced.is_whole) for pointer in pointers]
        inside = Value("inside", (cut.rows, cut.block))
        writer.body(traced, Value("tile", ()), inside, references)
        lines.extend(writer.lines)

    if len(tiles) == 1:
        body(tiles[0], 1)
    else:
        whole, last = tiles
        lines.append(f"{INDENT}if tile < {cut.tiles - 1}:")
        body(whole, 2)
        lines.append(f"{INDENT}else:")
        body(last, 2)
    parameters = ", ".join(pointer.name for pointer in pointers)
    source = "\n".join(["@triton.jit", f"def {name}({parameters}):", *lines, ""])
    return Kernel(name, source, tuple(pointers), cut)


def _inside(writer, cut):
    """Writes which elements and rows of the last tile are in the leaf."""
    writer.line(f"left = ({cut.size} - first * {cut.block}).to(tl.int32)")
    if cut.size % cut.vector == 0:
        writer.line(f"left = tl.multiple_of(left, {cut.vector})")  # so vectors are whole
    writer.line("inside = at < left")
    writer.line(f"blocks_inside = row < ({-(-cut.size // cut.block)} - first).to(tl.int32)")


def _reference(pointer, is_whole):
    mask = {"elements": "inside", "blocks": "blocks_inside", "small": ""}[pointer.kind]
    return Reference(pointer, "" if is_whole else mask)


_FUNCTIONS = {}


def function(kernel: Kernel, platform: str):
    """The kernel as a Triton function. Its source is in no file: `inspect` asks `linecache`."""
    key = kernel.source, platform
    if key not in _FUNCTIONS:
        import triton
        import triton.language as tl  # pyright: ignore[reportMissingImports]

        from pallas_kernels.triton import functions

        place = f"<Triton kernel {len(_FUNCTIONS)}: {kernel.name} on {platform}>"
        lines = kernel.source.splitlines(keepends=True)
        linecache.cache[place] = len(kernel.source), None, lines, place
        log2 = getattr(functions, f"log2_on_{platform}")
        names = dict(triton=triton, tl=tl, largest=functions.largest, log2=log2, __name__=place)
        exec(compile(kernel.source, place, "exec"), names)
        _FUNCTIONS[key] = names[kernel.name]
    return _FUNCTIONS[key]
