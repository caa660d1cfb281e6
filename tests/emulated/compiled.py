"""A kernel as a compiler made it."""

import dataclasses

from tests.emulated import ptx
from tests.emulated.steps import Steps


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A kernel, and how it is launched.

    Attributes:
      kernel: `ptx.Kernel`.
      steps: Its `Steps`.
      grid: Blocks of threads.
      threads: Threads of a block.
      shared: Bytes of shared memory of a block.
      buffers: For each parameter the number of the operand or result that it points to; None of a
        pointer to nothing.
      whole: Whether it writes all of its results. Else they may lack an end.
      types: Of operands and results.
      first: The first block of threads that is to be run.
      before: For each operand and result, how many bytes of it lie before those that are there.
    """

    kernel: ptx.Kernel
    steps: Steps
    grid: int
    threads: int
    shared: int
    buffers: tuple[int | None, ...]
    whole: bool = False
    types: tuple = ()
    first: int = 0
    before: tuple[int, ...] = ()

    @classmethod
    def of(cls, kernel, *launch, **others):
        """Of a `ptx.Kernel` and what follows after its `Steps`."""
        return cls(kernel, Steps(kernel), *launch, **others)
