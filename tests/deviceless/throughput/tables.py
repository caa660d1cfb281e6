"""The model's tables, in Markdown."""

import concurrent.futures

from tests.deviceless import worker
from tests.deviceless.throughput.gpus import GPUS
from tests.deviceless.throughput.kernels import (
    DTYPES,
    ELEMENTS,
    NAMES,
    PER_THREAD,
    case_name,
    has,
)
from tests.deviceless.throughput.model import SLOTS, Modelled, compiled

PROCESSES = 2

HEADER = """\
| kernel | of | elements a thread | instructions | MUFU | registers | blocks | bytes | \
budget | of it | floor, ms | modelled, ms | of floor |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""

LEGEND = f"""\
Instructions, MUFU (roots, logarithms and powers of two) and bytes are those for each parameter;
blocks are those of threads that a multiprocessor holds. Budget: the instructions that fit into
{SLOTS:.0%} of the time of the kernel's bytes, at the highest clock and (in brackets) at a sustained
one. Floor: the time of its bytes for 1e9 parameters. Modelled: the time by the simulator."""


def modelled(gpu, cells, results):
    """`Modelled` for each `(kernel, dtype, per_thread)`, from results of its case."""

    def of(kernel, dtype, per_thread):
        result = results[case_name(kernel, dtype, per_thread)]
        return Modelled(compiled(result, kernel, ELEMENTS), GPUS[gpu])

    return [of(*cell) for cell in cells]


def compile_for(gpu, cells):
    """`modelled`, of cases that are compiled now."""
    names = dict.fromkeys(case_name(*cell) for cell in cells)
    return modelled(gpu, cells, worker.results(gpu, names))


def all_kernels():
    """`(kernel, dtype, per_thread)` of every kernel as the code cuts it."""
    return [(kernel, dtype, None) for kernel in NAMES for dtype in DTYPES]


def compiled_row(dtype, of):
    """The cells of a row that need no simulation."""
    kernel = of.kernel
    return [
        f"`{kernel.name}`",
        dtype,
        f"{kernel.per_thread}",
        f"{kernel.instructions:.1f}",
        f"{kernel.special:.1f}",
        f"{kernel.registers}" + (f", {kernel.spilled} bytes spilled" if kernel.spilled else ""),
        f"{of.blocks}",
        f"{kernel.bytes:.2f}",
        f"{of.budget():.0f} ({of.budget(of.gpu.sustained):.0f})",
        f"{of.over:.2f}",
    ]


def _row(cell, of):
    time = of.simulated()
    cells = [*compiled_row(cell[1], of), f"{of.floor:.2f}", f"{time:.2f}", f"{time / of.floor:.2f}"]
    return f"| {' | '.join(cells)} |"


def table(gpu, cells):
    """The rows of some kernels on a GPU, with their header."""
    made = compile_for(gpu, cells)
    with concurrent.futures.ProcessPoolExecutor(PROCESSES) as processes:
        return "\n".join([HEADER, *processes.map(_row, cells, made)])


def per_thread():
    """What is modelled, as a multiple of the floor, for each way to cut; in bold, as it is cut."""
    rows = [(kernel, dtype) for kernel in NAMES for dtype in DTYPES if has(kernel, PER_THREAD[0])]
    heads = [f"{gpu}: {count}" for gpu in GPUS for count in PER_THREAD]
    lines = [f"| kernel | of | {' | '.join(heads)} |", "|---|---" + "|---:" * len(heads) + "|"]
    by_gpu = {gpu: _by_cut(gpu, rows) for gpu in GPUS}
    for row in rows:
        cells = [cell for gpu in GPUS for cell in by_gpu[gpu][row]]
        lines.append(f"| `{row[0]}` | {row[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_cut(gpu, rows):
    """`{(kernel, dtype): cells}`, a cell for each way to cut."""
    cut = [(*row, count) for row in rows for count in PER_THREAD]
    made = compile_for(gpu, cut + [(*row, None) for row in rows])
    chosen = {row: x.kernel.per_thread for row, x in zip(rows, made[len(cut) :], strict=True)}
    with concurrent.futures.ProcessPoolExecutor(PROCESSES) as processes:
        texts = dict(zip(cut, processes.map(_of_floor, made[: len(cut)]), strict=True))

    def cell(row, count):
        text = texts[(*row, count)]
        return f"**{text}**" if chosen[row] == count else text

    return {row: [cell(row, count) for count in PER_THREAD] for row in rows}


def _of_floor(of):
    return f"{of.simulated() / of.floor:.2f}" + (" (spills)" if of.kernel.spilled else "")
