"""GPUs as the model sees them."""

from typing import NamedTuple

from tests.deviceless.targets import TARGETS, Target

ISSUED = 4
"""Instructions of a warp that a multiprocessor issues in a cycle: one by each of its schedulers."""

WARP = 32
"""Threads."""

_REGISTERS = 2**16
"""Of a multiprocessor."""

LANES = {
    (8, 0): dict(FMA=64, ALU=64, XU=16, LSU=32),
    (9, 0): dict(FMA=128, ALU=64, XU=16, LSU=32),
    (10, 0): dict(FMA=128, ALU=64, XU=16, LSU=32),
}
"""Threads for which a pipe of a multiprocessor takes an instruction in a cycle.

From the table of the throughput of native arithmetic instructions, per compute capability, in
NVIDIA's CUDA C++ Best Practices Guide (until CUDA 12 in the Programming Guide): float32 addition,
multiplication and multiply-add; integer addition, comparison, shift and logic; reciprocal, root,
logarithm and power of two; warp shuffle. Of the FMA pipe half, 64 lanes, also multiplies integers.

The table was at hand only as others quote it. By what is quoted for 9.0 and 12.0, conversions from
float32 to 16 bits (F2FP) may run on 16 lanes, and for 10.0, minima of float32 on 128: here both are
the ALU's. A kernel has half a conversion for each parameter that it writes in bfloat16.
"""


class Gpu(NamedTuple):
    """A GPU, its clocks and its memory."""

    target: Target
    sustained: float
    """The clock in GHz to which a GPU at work may fall; of `target` it is the highest."""
    bandwidth: float
    """Bytes per second of main memory that a kernel reaches at best: 90 % of the datasheet's."""

    @property
    def boost(self):
        """The highest clock in GHz."""
        return self.target.clock_ghz

    @property
    def lanes(self):
        """Those of `LANES`."""
        return LANES[self.target.capability]

    def milliseconds(self, cycles, clock=None):
        """The time of so many cycles of one multiprocessor, if all share the work."""
        return cycles / self.target.multiprocessors / ((clock or self.boost) * 1e6)

    def blocks(self, registers, threads):
        """Blocks of threads that a multiprocessor holds: by registers, and by threads.

        A warp takes its registers in pieces of 256. Of shared memory the kernels take too little
        for it to matter.
        """
        warp = -(-registers * WARP // 256) * 256
        schedulers = _REGISTERS // warp // ISSUED
        most = self.target.threads_per_multiprocessor // threads
        return min(schedulers * ISSUED // (threads // WARP), most)


GPUS = {
    # 1.755 GHz is the base clock of an H100. The other two are assumed.
    "a100": Gpu(TARGETS["a100"], sustained=1.275, bandwidth=1.83e12),
    "h200": Gpu(TARGETS["h200"], sustained=1.755, bandwidth=4.3e12),
    "b200": Gpu(TARGETS["b200"], sustained=1.7, bandwidth=7.2e12),
}
