"""Kernels of `pallas_kernels`, compiled for a GPU that is not here, and emulated in its place.

`MOSAIC_GPU_DUMP_TO` has to name an existing folder when the first kernel is compiled; of it this
module takes and removes all files.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import re
import types
import unittest.mock

import jax
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

import pallas_kernels.mosaic.launch
from tests.deviceless import compiling, targets
from tests.deviceless.dump import LOWERED
from tests.emulated import ptx
from tests.emulated.approximate import End
from tests.emulated.faults import Fault, Unknown
from tests.emulated.launch import Launch
from tests.emulated.memory import Memory
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
      buffers: For each parameter the number of the operand or result that it points to.
      types: Of operands and results.
      first: The first block of threads that is to be run.
      before: For each operand and result, how many bytes of it lie before those that are there.
    """

    kernel: ptx.Kernel
    steps: Steps
    grid: int
    threads: int
    shared: int
    buffers: tuple[int, ...]
    types: tuple = ()
    first: int = 0
    before: tuple[int, ...] = ()

    @classmethod
    def of(cls, text, log):
        """Of PTX, and of what Mosaic logs of its passes."""
        kernel = ptx.parse(text)
        return cls(kernel, Steps(kernel), *launch_of(log))


def launch_of(log):
    """`(grid, threads, shared, buffers)` of the only launch in Mosaic's log of its passes.

    The code of the host gets an array of pointers, to operands and then to results, loads those
    that the kernel needs, and passes them on in an order of its own.
    """
    host = log[log.rindex("IR Dump Before GpuLaunchLoweringPass") :]
    (launch,) = re.findall(r"gpu\.launch_func .*", host)
    found = re.search(
        r" blocks in \((.*?)\) threads in \((.*?)\) : i64 dynamic_shared_memory_size (%\w+) "
        r"args\((.*?)\)",
        launch,
    )
    if found is None or "cluster" in launch:
        raise Unknown(f"this launch: {launch}")
    numbers = {
        value: int(number)
        for value, number in re.findall(r"(%\w+) = llvm\.mlir\.constant\((\d+) : i\d+\)", host)
    }
    grid, threads = ([numbers[x] for x in found[i].split(", ")] for i in (1, 2))
    if grid[1:] + threads[1:] != [1] * 4:
        raise Unknown(f"a grid of several dimensions: {launch}")
    elements = dict(re.findall(r"(%\w+) = llvm\.getelementptr %\w+\[(\d+)\]", host))
    loaded = dict(re.findall(r"(%\w+) = llvm\.load (%\w+) : !llvm\.ptr -> !llvm\.ptr", host))
    passed = re.findall(r"(%\w+) : !llvm\.ptr", found[4])
    # The first pointer is loaded from the array itself.
    buffers = tuple(int(elements.get(loaded[x], 0)) for x in passed)
    return grid[0], threads[0], numbers[found[3]], buffers


class Compiler:
    """Compiles kernels for a target, each of them once. One target a process: see `make_mesh`."""

    def __init__(self, target):
        self._mesh = targets.make_mesh(targets.TARGETS[target])
        self._known = {}
        # It is asked while JAX traces, which is a matter of the thread.
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    def __call__(self, function, arguments):
        """The `Compiled` kernel that a function of arrays launches."""
        return self._thread.submit(self._compile, function, arguments).result()

    def _compile(self, function, arguments):
        folder = pathlib.Path(os.environ["MOSAIC_GPU_DUMP_TO"])
        for path in folder.iterdir():  # of another kernel, or of one that failed
            path.unlink()
        compiling.compile_for(self._mesh, function, *arguments)
        (lowered,) = folder.glob("*" + LOWERED)
        key = re.sub(r'mosaic_gpu\.dump_basename = "[^"]*"', "", lowered.read_text())
        # JAX 0.12 compiles equal kernels of a process once.
        for text in folder.glob("*.ptx"):
            log = text.with_suffix(".mlir-passes.log").read_text()
            self._known[key] = Compiled.of(text.read_text(), log)
        return self._known[key]


class Emulation:
    """What is emulated, and how.

    Attributes:
      end: To which end of their error approximate instructions go. May be changed between runs.
      launched: Names of the kernels that were run, in order.
      fault: The first `Fault` since it was set to None. What a kernel had made then is nonsense.
    """

    def __init__(self, compiler):
        self.compiler = compiler
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

    def kernel(self, body, *, out_type=(), interpret=None, **options):
        """In place of `plgpu.kernel`."""
        if interpret is not None:
            raise ValueError("A kernel is interpreted or emulated, not both.")

        def call(*operands):
            are_refs = [isinstance(x, jax.Ref) for x in operands]
            arrays = [x[...] if is_ref else x for x, is_ref in zip(operands, are_refs, strict=True)]
            avals = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]

            def on_gpu(*arrays):
                pairs = zip(arrays, are_refs, strict=True)
                given = [jax.new_ref(x) if is_ref else x for x, is_ref in pairs]
                made = plgpu.kernel(body, out_type=out_type, **options)(*given)
                return made, [jax.freeze(x) for x, r in zip(given, are_refs, strict=True) if r]

            compiled = self.compiler(on_gpu, avals)
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

        return call

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
            tuple(addresses[i] for i in compiled.buffers),
            range(compiled.first, compiled.grid),
            compiled.threads,
            compiled.shared,
            self.end,
        )
        try:
            launch.run(compiled.steps)
            for at, x in zip(results, out_type, strict=True):
                _without_holes(memory.written(at), x)
        except Fault as fault:  # JAX would make another error of it
            self.fault = self.fault or fault
        made = [memory.array(at, x) for at, x in zip(results, out_type, strict=True)]
        pairs = zip(operands, arrays, are_refs, strict=True)
        return made, [memory.array(at, x) for at, x, is_ref in pairs if is_ref]


# XLA calls back in threads that take subnormal numbers for zero, as do threads that these start.
_THREAD = concurrent.futures.ThreadPoolExecutor(1)
_THREAD.submit(int).result()


def _without_holes(written, result):
    """A result may lack nothing but an end: that is the rest, which XLA computes."""
    if not written[: np.count_nonzero(written)].all():
        raise Fault(f"a hole in a result of the shape {result.shape}")


_current = None


def current():
    """The emulation in which a check is done."""
    return _current


@contextlib.contextmanager
def emulated(compiler):
    """Within, kernels that are traced are compiled, and run in an emulation, which is yielded."""
    global _current
    emulation = _current = Emulation(compiler)
    instead = types.SimpleNamespace(kernel=emulation.kernel, CompilerParams=plgpu.CompilerParams)
    with unittest.mock.patch.object(pallas_kernels.mosaic.launch, "plgpu", instead):
        yield emulation
