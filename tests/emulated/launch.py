"""A launch of a kernel: buffers, a grid of blocks of threads, and what becomes of them."""

import dataclasses

import numpy as np

from tests.emulated.approximate import End
from tests.emulated.faults import Fault
from tests.emulated.lanes import Lanes
from tests.emulated.memory import Memory
from tests.emulated.ptx import Kernel
from tests.emulated.steps import Steps

LANES = 4096
"""How many threads are run at once: enough for NumPy to work, and little memory."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a kernel is run.

    Attributes:
      kernel: `ptx.Kernel`.
      memory: Global memory, closed.
      arguments: Addresses, in the order of the kernel's parameters.
      blocks: The numbers of the blocks of threads.
      threads: Threads of a block, whole warps.
      shared: Bytes of shared memory of a block.
      end: To which end of their error approximate instructions go.
    """

    kernel: Kernel
    memory: Memory
    arguments: tuple[int, ...]
    blocks: range
    threads: int
    shared: int = 0
    end: End = End.NEAREST

    def run(self, steps=None):
        """Runs it. `steps` is `Steps(kernel)`, if somebody has it already.

        Raises:
          Fault: It did what a GPU would refuse, or does not define.
          Unknown: An instruction is not known.
        """
        if np.full(2, 1e-40, np.float32).sum() == 0:
            raise RuntimeError("This thread takes subnormal numbers for zero, as XLA's do.")
        steps = steps or Steps(self.kernel)
        at_once = max(LANES // self.threads, 1)
        with np.errstate(all="ignore"):
            for i in range(0, len(self.blocks), at_once):
                lanes = Lanes(self, self.blocks[i : i + at_once])
                try:
                    lanes.run(steps.steps, steps.labels)
                except Fault as fault:
                    raise self._placed(fault, lanes) from None

    def _placed(self, fault, lanes):
        """The fault, with its place."""
        what, who = fault.args
        instruction = self.kernel.code[lanes.place]
        return Fault(
            f"{self.kernel.name}, line {instruction.line}: `{instruction.text}`: {what} "
            f"({lanes.who(who)})"
        )
