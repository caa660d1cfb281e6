"""Kernels of `pallas_kernels`, compiled for a GPU that is not here, and emulated in its place."""

import concurrent.futures
import contextlib
import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from tests.emulated import by_mosaic, by_triton
from tests.emulated.approximate import End
from tests.emulated.faults import Fault
from tests.emulated.launch import Launch
from tests.emulated.memory import Memory


class Target(NamedTuple):
    """What kernels are compiled by, and for."""

    implementation: str
    """A key of `dispatch.IMPLEMENTATIONS`."""
    gpu: str | None
    """Of `tests.deviceless.targets`, for Mosaic; None if it has none like it."""
    capability: int


TARGETS = {
    "h200": Target("mosaic", "h200", 90),
    "a100": Target("mosaic", "a100", 80),
    "b200": Target("mosaic", "b200", 100),
    "triton-sm_90": Target("triton", "h200", 90),
    "triton-sm_80": Target("triton", "a100", 80),
    "triton-sm_75": Target("triton", None, 75),
}


class Emulation:
    """What is emulated, and how.

    Attributes:
      target: `Target`.
      end: To which end of their error approximate instructions go. May be changed between runs.
      launched: Names of the kernels that were run, in order.
      fault: The first `Fault` since it was set to None. What a kernel had made then is nonsense.
    """

    def __init__(self, target):
        self.target = target
        self.end, self.launched, self.fault = End.NEAREST, [], None
        self._traced, self._change = [], lambda compiled: compiled

    def trace(self, function, *types):
        """The `Compiled` kernels that a function of such arrays launches, in order."""
        self._traced = []
        jax.eval_shape(function, *types)
        return self._traced

    @contextlib.contextmanager
    def changed(self, change):
        """Within, `change(compiled)` is run instead of each `Compiled`."""
        before, self._change = self._change, change
        try:
            yield
        finally:
            self._change = before

    def launch(self, compiled, operands, out_type):
        """The results of a `Compiled` kernel that is given arrays and references."""
        are_refs = [isinstance(x, jax.Ref) for x in operands]
        arrays = [x[...] if is_ref else x for x, is_ref in zip(operands, are_refs, strict=True)]
        avals = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
        compiled = dataclasses.replace(compiled, types=(*avals, *out_type))
        self._traced.append(compiled)
        written = [x for x, is_ref in zip(avals, are_refs, strict=True) if is_ref]

        def run(*arrays):
            given = [np.asarray(x) for x in arrays]
            return _THREAD.submit(self._run, compiled, are_refs, given, out_type).result()

        made, new = jax.pure_callback(
            run, (list(out_type), written), *arrays, vmap_method="sequential"
        )
        refs = [x for x, is_ref in zip(operands, are_refs, strict=True) if is_ref]
        for ref, x in zip(refs, new, strict=True):
            ref[...] = x
        return tuple(made)

    def _run(self, compiled, are_refs, arrays, out_type):
        """`(results, what was written in place)`."""
        compiled, memory = self._change(compiled), Memory()
        self.launched.append(compiled.kernel.name)
        pairs = zip(arrays, are_refs, strict=True)
        operands = [memory.add(f"operand {i}", x, writable=w) for i, (x, w) in enumerate(pairs)]
        results = [
            memory.add(f"result {i}", np.zeros(x.shape, x.dtype), writable=True, initialised=False)
            for i, x in enumerate(out_type)
        ]
        before = compiled.before or [0] * len(operands + results)
        # Where a buffer would begin of which only the end is there.
        addresses = [(x - y) % 2**64 for x, y in zip(operands + results, before, strict=True)]
        launch = Launch(
            compiled.kernel,
            memory.close(),
            tuple(0 if i is None else addresses[i] for i in compiled.buffers),
            range(compiled.first, compiled.grid),
            compiled.threads,
            compiled.shared,
            self.end,
        )
        try:
            launch.run(compiled.steps)
            for at, x in zip(results, out_type, strict=True):
                _without_holes(memory.written(at), x, compiled.whole)
        except Fault as fault:  # JAX would make another error of it
            self.fault = self.fault or fault
        made = [memory.array(at, x) for at, x in zip(results, out_type, strict=True)]
        pairs = zip(operands, arrays, are_refs, strict=True)
        return made, [memory.array(at, x) for at, x, is_ref in pairs if is_ref]


# XLA calls back in threads that take subnormal numbers for zero, as do threads that these start.
_THREAD = concurrent.futures.ThreadPoolExecutor(1)
_THREAD.submit(int).result()


def _without_holes(written, result, whole):
    """A result may lack nothing but, if it is not whole, an end: the rest, which XLA computes."""
    if not written[: None if whole else np.count_nonzero(written)].all():
        raise Fault(f"a hole in a result of the shape {result.shape}")


_current = None


def current():
    """The emulation in which a check is done."""
    return _current


@contextlib.contextmanager
def emulated(target):
    """Within, kernels that are traced are compiled, and run in an emulation, which is yielded.

    Those of all implementations that have kernels for the GPU of the target, a key of `TARGETS`.
    """
    global _current
    target = TARGETS[target]
    emulation = _current = Emulation(target)
    with contextlib.ExitStack() as stack:
        if target.gpu is not None:
            stack.enter_context(by_mosaic.within(target.gpu, emulation))
        stack.enter_context(by_triton.within(target.capability, emulation))
        yield emulation
