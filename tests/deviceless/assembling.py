"""Machine code of PTX, by the assembler that XLA would use."""

import functools
import importlib.util
import pathlib
import re
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
        code = _run("nvdisasm", "-c", "-hex", made).stdout
    return sass.assembled(log, architecture) | sass.disassembled(with_control(code))


_ENCODED = re.compile(
    r"^(\s*/\*[0-9a-f]{4,}\*/\s.*?;)\s*/\* 0x[0-9a-f]{16} \*/\n\s*/\* 0x([0-9a-f]{16}) \*/$",
    re.MULTILINE,
)


def with_control(code):
    """Machine code with the assembler's advice before each instruction, as Mosaic writes it.

    `nvdisasm` prints the 128 bits of an instruction. Of the upper 64, from bit 41 on, four are
    cycles to stall, one is about yielding, three each are the scoreboards of a result and of
    operands (7: none), and six say for which scoreboards to wait.
    """

    def line(found):
        control = int(found[2], 16) >> 41
        stall, stays, result, operands, waits = (
            control >> at & (1 << bits) - 1
            for at, bits in ((0, 4), (4, 1), (5, 3), (8, 3), (11, 6))
        )
        waits = "&".join(str(i) for i in range(6) if waits >> i & 1) or "-"
        boards = ":".join("-" if x == 7 else str(x) for x in (operands, result))
        return f"{waits}:{boards}:{'-Y'[stays]}:{stall:x} {found[1]}"

    return _ENCODED.sub(line, code)


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
