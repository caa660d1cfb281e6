"""What is read off a compiled kernel, and what the model makes of it."""

import math
from typing import NamedTuple

from tests.deviceless import sass
from tests.deviceless.throughput import hardware, pipes, programs, simulator
from tests.deviceless.throughput.gpus import ISSUED, WARP, Gpu

LATENCY = 450
"""Nanoseconds of a load from main memory. Assumed: what is published lies between 300 and 650."""

SLOTS = 0.85
"""Of the slots of its schedulers, what a kernel may need of the time of its bytes."""

SIZE = 10**9
"""Parameters for which times are said."""


class Kernel(NamedTuple):
    """A kernel as compiled. Numbers for each parameter are those of the whole grid together."""

    name: str
    threads: int
    """Of a block."""
    per_thread: int
    """Parameters of a thread."""
    registers: int
    spilled: int
    """Bytes."""
    way: list[sass.Scheduled]
    """What a thread runs, if there is nothing to skip."""
    bytes: float
    """That it moves from and to main memory for a parameter."""

    @property
    def instructions(self):
        """For each parameter."""
        return len(self.way) / self.per_thread

    @property
    def special(self):
        """Instructions for roots, logarithms and powers of two, for each parameter."""
        return sum(x.name == "MUFU" for x in self.way) / self.per_thread


def compiled(result, name, elements):
    """The `Kernel` of that name, of the result of a case for so many elements."""
    (kernel,) = (x for x in result["kernels"].values() if x["name"] == name)
    (launch,) = (x for x in result["facts"]["launches"] if x["name"] == name)
    moved = (launch["reads"] + launch["writes"]) / elements
    if name.endswith("_apply"):
        # Of its operands the gradient is read in tiles with an element to be skipped only. It is as
        # wide as the parameter, which is all that is written but for a residual of one byte.
        moved -= launch["writes"] // (2 * elements) * 2
    code = kernel["sass"]
    sass.instructions_on_main_path(kernel, branches=1)  # refuses loops
    return Kernel(
        name=name,
        threads=kernel["threads"],
        per_thread=elements // (math.prod(kernel["grid"]) * kernel["threads"]),
        registers=code["registers"],
        spilled=code["spilled_bytes"],
        way=sass.scheduled(code["way"]),
        bytes=moved,
    )


class Modelled(NamedTuple):
    """A kernel on a GPU. Times are modelled: milliseconds for `SIZE` parameters."""

    kernel: Kernel
    gpu: Gpu

    @property
    def blocks(self):
        """Blocks of threads that a multiprocessor holds."""
        return self.gpu.blocks(self.kernel.registers, self.kernel.threads)

    @property
    def floor(self):
        """The time of its bytes."""
        return self.kernel.bytes * SIZE / self.gpu.bandwidth * 1e3

    def budget(self, clock=None):
        """The instructions for each parameter that fit into `SLOTS` of the time of its bytes."""
        cycles = self.floor / self.gpu.milliseconds(SIZE, clock)  # of a multiprocessor
        return SLOTS * ISSUED * WARP * cycles

    @property
    def over(self):
        """Its instructions as a multiple of the budget, at the highest clock."""
        return self.kernel.instructions / self.budget()

    @property
    def busy(self):
        """`{pipe: time}` that the way keeps each pipe, and the schedulers as `issue`, busy."""
        cycles = pipes.busy_cycles(self.kernel.way, self.gpu.lanes)
        threads = SIZE / self.kernel.per_thread / WARP
        return {name: self.gpu.milliseconds(x * threads) for name, x in cycles.items()}

    def simulated(self, clock=None, latency=LATENCY):
        """The time by the simulator, at a clock in GHz."""
        clock = clock or self.gpu.boost
        share = self.gpu.bandwidth / self.gpu.target.multiprocessors / (clock * 1e9)
        machine = hardware.Machine(
            self.blocks, self.gpu.lanes["FMA"] // 64, int(latency * clock), share
        )
        kernel = self.kernel
        steps = programs.program(kernel.way, kernel.bytes * kernel.per_thread)
        cycles = simulator.simulate(steps, machine).cycles
        return self.gpu.milliseconds(cycles * SIZE / (kernel.threads * kernel.per_thread), clock)
