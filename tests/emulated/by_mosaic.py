"""What Mosaic makes of kernels, from where `pallas_kernels` asks it for one.

`MOSAIC_GPU_DUMP_TO` has to name an existing folder when the first kernel is compiled; of it this
module takes and removes all files.
"""

import concurrent.futures
import contextlib
import functools
import os
import pathlib
import re
import types
import unittest.mock

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

import pallas_kernels.mosaic.launch
from tests.deviceless import compiling, targets
from tests.deviceless.dump import LOWERED
from tests.emulated import ptx
from tests.emulated.compiled import Compiled
from tests.emulated.faults import Unknown


@contextlib.contextmanager
def within(target, emulation):
    """Within, kernels are compiled for a target of `tests.deviceless`, and emulated."""
    compiler = Compiler(target)

    def kernel(body, *, out_type=(), interpret=None, **options):
        """In place of `plgpu.kernel`."""
        if interpret is not None:
            raise ValueError("A kernel is interpreted or emulated, not both.")

        def call(*operands):
            def on_gpu(*arrays):
                pairs = zip(arrays, operands, strict=True)
                given = [jax.new_ref(x) if isinstance(y, jax.Ref) else x for x, y in pairs]
                made = plgpu.kernel(body, out_type=out_type, **options)(*given)
                return made, [jax.freeze(x) for x in given if isinstance(x, jax.Ref)]

            avals = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
            return emulation.launch(compiler(on_gpu, avals), operands, out_type)

        return call

    instead = types.SimpleNamespace(kernel=kernel, CompilerParams=plgpu.CompilerParams)
    with unittest.mock.patch.object(pallas_kernels.mosaic.launch, "plgpu", instead):
        yield


def compiled(text, log):
    """The `Compiled` of PTX, and of what Mosaic logs of its passes."""
    grid, threads, shared, buffers = launch_of(log)
    return Compiled.of(ptx.parse(text), grid, threads, shared, buffers)


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
        self._target, self._known = targets.TARGETS[target], {}
        # It is asked while JAX traces, which is a matter of the thread.
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    def __call__(self, function, arguments):
        """The `Compiled` kernel that a function of arrays launches."""
        return self._thread.submit(self._compile, function, arguments).result()

    @functools.cached_property
    def _mesh(self):
        return targets.make_mesh(self._target)

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
            self._known[key] = compiled(text.read_text(), log)
        return self._known[key]
