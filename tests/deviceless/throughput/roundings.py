"""What the ways to round parameters cost the kernels that write them, in bfloat16, in Markdown."""

import concurrent.futures

from pallas_kernels.arithmetic.params import ROUNDINGS
from tests.deviceless import worker
from tests.deviceless.throughput.gpus import GPUS
from tests.deviceless.throughput.kernels import ELEMENTS
from tests.deviceless.throughput.model import Modelled, compiled
from tests.deviceless.throughput.tables import PROCESSES

KERNELS = {"lion_step": "lion", "adam_step": "adam", "lamb_apply": "lamb"}
"""And the rules that they are of."""
ROWS = tuple((kernel, rounding) for kernel in KERNELS for rounding in ROUNDINGS)
HEADER = (
    "| kernel | rounding | bytes | "
    + " | ".join(f"{gpu} | of floor" for gpu in GPUS)
    + " |\n|---|---|---:|"
    + "---:|---:|" * len(GPUS)
)


def case_name(kernel, rounding):
    """The name of the case that has a kernel with this rounding."""
    rule = KERNELS[kernel]
    return f"kernel/{rule}/power/bf16" if rounding == "nearest" else f"kernel/{rule}/{rounding}"


def modelled(gpu, results):
    """`{(kernel, rounding): Modelled}`, from results of their cases."""
    return {
        row: Modelled(compiled(results[case_name(*row)], row[0], ELEMENTS), GPUS[gpu])
        for row in ROWS
    }


def compiled_cells(of):
    """What needs no simulation: bytes, and instructions with registers."""
    kernel = of.kernel
    return f"{kernel.bytes:.2f}", f"{kernel.instructions:.1f}, {kernel.registers}"


def table():
    """All rows, with their header."""
    names = [case_name(*row) for row in ROWS]
    made = {gpu: modelled(gpu, worker.results(gpu, names)) for gpu in GPUS}
    cells = [(gpu, row) for row in ROWS for gpu in GPUS]
    with concurrent.futures.ProcessPoolExecutor(PROCESSES) as processes:
        times = processes.map(_of_floor, [made[gpu][row] for gpu, row in cells])
        shares = dict(zip(cells, times, strict=True))
    lines = [HEADER]
    for row in ROWS:
        columns = [f"`{row[0]}`", row[1], compiled_cells(made["h200"][row])[0]]
        for gpu in GPUS:
            columns += [compiled_cells(made[gpu][row])[1], f"{shares[gpu, row]:.2f}"]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _of_floor(of):
    return of.simulated() / of.floor
