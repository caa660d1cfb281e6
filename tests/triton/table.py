"""The table of docs/kernels.md of Triton's kernels, beside Mosaic's."""

from tests.deviceless.throughput import tables
from tests.deviceless.throughput.kernels import DTYPES, NAMES, STEPS
from tests.triton import compiling, steps

GPUS = 75, 80, 90, 100
AMD = "gfx942"
HEADER = (
    "| kernel | of | elements a thread | MUFU | "
    + " | ".join(f"sm_{gpu}" for gpu in GPUS)
    + f" | {AMD} | Mosaic, sm_90 |\n|---|---|---:|---:|{'---:|' * len(GPUS)}---:|---:|"
)


def kernel(name, dtype):
    """The kernel of that name of a large leaf, with the default codec and without decay."""
    if name not in STEPS:
        return steps.of_quantization(dtype)[name]
    rule, emit = STEPS[name]
    return steps.of_step(rule, dtype, emit=emit)[name]


def row(name, dtype):
    """The cells of a kernel but for Mosaic's."""
    made = kernel(name, dtype)
    count = compiling.elements_of_a_thread(made)
    special = sum("MUFU" in x for x in compiling.facts(made)["way"]) / count
    cells = [f"`{name}`", dtype, f"{count}", f"{special:.1f}"]
    for gpu in GPUS:
        registers = compiling.facts(made, gpu)["registers"]
        cells.append(f"{compiling.instructions(made, gpu):.1f}, {registers}")
    return [*cells, f"{compiling.amd_facts(made, AMD)['registers']}"]


def table():
    """All rows, with their header. Compiles Mosaic's kernels, too."""
    cells = [(name, dtype, None) for name in NAMES for dtype in DTYPES]
    mosaic = [x.kernel for x in tables.compile_for("h200", cells)]
    rows = [
        [*row(name, dtype), f"{other.instructions:.1f}, {other.registers}"]
        for (name, dtype, _), other in zip(cells, mosaic, strict=True)
    ]
    return "\n".join([HEADER, *(f"| {' | '.join(x)} |" for x in rows)])
