"""Machine code of PTX, by the assembler that XLA would use."""

import functools
import importlib.util
import pathlib
import subprocess
import tempfile

from tests.deviceless import sass


@functools.cache
def facts(ptx, architecture):
    """Registers, spilled bytes and machine code of a kernel: see `sass`."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "kernel.ptx")
        path.write_text(ptx)
        made = path.with_suffix(".cubin")
        log = _run("ptxas", "-v", f"-arch={architecture}", path, "-o", made).stderr
        code = _run("nvdisasm", "-c", made).stdout
    return sass.assembled(log, architecture) | sass.disassembled(code)


def _run(program, *arguments):
    done = subprocess.run(
        [_compilers() / program, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{program} failed:\n{done.stderr[:4000]}")
    return done


@functools.cache
def _compilers():
    """The folder of NVIDIA's compilers."""
    (place,) = importlib.util.find_spec("nvidia.cu13").submodule_search_locations
    return pathlib.Path(place, "bin")
