"""The parts of a run. Each is a process, because an illegal access ends all work of its process.

A part names a function `(run) -> iterable of (name, function)`; see `records.Run`. The checks,
which mostly wait for compilers, run side by side; the timings, one after the other.
"""

import dataclasses
import importlib


@dataclasses.dataclass(frozen=True)
class Part:
    """Some checks or timings that share a process."""

    name: str
    kind: str
    where: str
    share: float = 1.0
    """Of the time that is left for its kind, how much it may take."""
    peer: bool = False

    def items(self, run):
        """`(name, function)` for each check or timing."""
        module, function = self.where.split(":")
        return getattr(importlib.import_module(f"tests.gpu.{module}"), function)(run)


PARTS = {
    part.name: part
    for part in (
        Part("step-lion", "check", "check_step:lion"),
        Part("step-lamb", "check", "check_step:lamb"),
        Part("step-lamb_amsgrad", "check", "check_step:lamb_amsgrad"),
        Part("oracle-lion", "check", "check_oracle:lion"),
        Part("oracle-lamb", "check", "check_oracle:lamb"),
        Part("quantize", "check", "check_quantize:checks"),
        Part("program", "check", "check_program:checks"),
        # Last of the checks, as it watches the allocator and takes the most memory.
        Part("memory", "check", "check_memory:checks"),
        Part("ours", "timing", "time_ours:programs", share=0.7),
        Part("flashoptim-jax", "timing", "time_flashoptim:programs", share=0.5, peer=True),
        Part("torch", "timing", "torch_peers:timings", peer=True),
    )
}
