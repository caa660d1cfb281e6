"""The parts of a run. Each is a process, because an illegal access ends all work of its process.

A part names a function `(run) -> iterable of (name, function)`; see `records.Run`. The checks,
which mostly wait for compilers, run side by side; the timings, one after the other. Whatever has a
peak of memory to be known has a part of its own.
"""

import dataclasses
import importlib

from tests.gpu import offload
from tests.gpu.paging import OPTIMIZERS


@dataclasses.dataclass(frozen=True)
class Part:
    """Some checks or timings that share a process."""

    name: str
    kind: str
    where: str
    share: float = 1.0
    """Of the time that is left for its kind, how much it may take."""
    peer: bool = False
    of: str | None = None
    """What its function is asked for before `run`, if it has several things to offer."""
    least: float = 0.0
    """Seconds without which a timing does not start: for JAX, and for compilers."""
    memory: float | None = None
    """The share of the device's memory that it takes at its start; None takes it as it goes.

    An allocator that has to ask for more gives an array up to twice of what it needs, and counts
    all of it as in use. So whoever watches the peak takes one large piece, of which arrays are cut.
    """

    def items(self, run):
        """`(name, function)` for each check or timing."""
        module, function = self.where.split(":")
        asked = () if self.of is None else (self.of,)
        return getattr(importlib.import_module(f"tests.gpu.{module}"), function)(*asked, run)


def _peak(case):
    return Part(
        f"peak-{case.replace(' ', '-')}", "check", "check_paged_memory:checks", of=case, memory=0.05
    )


def _by_triton(rule):
    return Part(f"triton-{rule}", "check", "check_triton:steps", of=rule)


def _paged(name, where, of=None, peer=False):
    name = f"paged-{name.replace(' ', '-')}"
    return Part(name, "timing", where, share=0.5, peer=peer, of=of, least=60, memory=0.9)


PARTS = {
    part.name: part
    for part in (
        # Of what starts at once: what is short and tells most.
        Part("program", "check", "check_program:checks"),
        Part("step-lion", "check", "check_step:lion"),
        Part("step-lamb", "check", "check_step:lamb"),
        Part("step-adam", "check", "check_step:adam"),
        Part("quantize", "check", "check_quantize:checks"),
        Part("oracle-lion", "check", "check_oracle:lion"),
        Part("oracle-lamb", "check", "check_oracle:lamb"),
        Part("oracle-adamw", "check", "check_oracle:adamw"),
        *(_by_triton(rule) for rule in ("lion", "lamb", "adam")),
        Part("triton-quantize", "check", "check_triton:quantization"),
        Part("paged", "check", "check_paged:checks"),
        *(_peak(f"{name} {leaves}") for name in OPTIMIZERS for leaves in ("grouped", "pieces")),
        Part("step-lamb_amsgrad", "check", "check_step:lamb_amsgrad"),
        _by_triton("lamb_amsgrad"),
        # Last of the checks, as it watches the allocator and takes the most memory.
        Part("memory", "check", "check_memory:checks"),
        Part("ours", "timing", "time_ours:programs", share=0.7),
        Part("triton", "timing", "time_ours:by_triton", share=0.5),
        Part("flashoptim-jax", "timing", "time_flashoptim:programs", share=0.5, peer=True),
        Part("torch", "timing", "torch_peers:timings", peer=True),
        # Those without which the others have nothing to be compared with come first.
        _paged("link", "time_paged:link"),
        _paged("resident", "time_paged:resident"),
        _paged("32MiB", "time_paged:pages", "32"),
        _paged("training-resident", "time_training:programs", "resident"),
        _paged("training", "time_training:programs", "paged"),
        *(_paged(f"{mib}MiB", "time_paged:pages", str(mib)) for mib in (8, 128)),
        *(
            _paged(f"by-others-{kind}", "time_paged:offloaded", kind, True)
            for kind in offload.KINDS
        ),
        *(
            _paged(f"training-{kind}", "time_training:programs", kind, True)
            for kind in offload.KINDS
        ),
        *(_paged(name, "time_paged:others", name) for name in OPTIMIZERS[1:]),
        Part("torch-paged", "timing", "torch_peers:paged", peer=True, least=30),
    )
}
