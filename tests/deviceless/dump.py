"""The folder that Mosaic writes to about each kernel: `MOSAIC_GPU_DUMP_TO`."""

import collections
import itertools
import os
import pathlib
import re

from tests.deviceless import mosaic, sass


def start(folder):
    """Lets Mosaic write to a folder. Comes before anything else imports JAX."""
    os.environ["MOSAIC_GPU_DUMP_TO"] = str(folder)
    from jax.experimental.mosaic.gpu import constraints

    # Nobody reads the constraints of layouts. To make a text of them takes as long as all else that
    # is done to compile a kernel.
    constraints.ConstraintSystem.__str__ = lambda self: "left out"


LOWERED, _COMPILED = ".before_layout_inference.txt", ".mlir-passes.log"


class Dump:
    """Says which kernels were compiled, and to what machine code.

    Two parts of Mosaic write files, and number them apart: the one that lowers a kernel, and the
    one that compiles it, which in jax 0.12 does so once for all equal kernels of a process. So
    machine code is found by the name and the buffers of its kernel, and kept for later kernels of
    the same text.
    """

    def __init__(self, folder, architecture):
        self.folder = pathlib.Path(folder)
        self.architecture = architecture
        self._codes = collections.defaultdict(list)  # by identity
        self._by_text = collections.defaultdict(dict)  # by identity, then by text

    def new(self):
        """`mosaic.Kernel`s lowered since the last call, each of them once."""
        texts = self._lowered()
        self._read_machine_code()
        return [mosaic.kernel(text, self._machine_code(text, texts)) for text in texts]

    def forget(self):
        """Leaves out of the next `new` what was lowered until now."""
        self._lowered()

    def _lowered(self):
        texts = set()
        for path in self.folder.glob("*" + LOWERED):
            texts.add(re.sub(r'mosaic_gpu\.dump_basename = "[^"]*"', "", path.read_text()))
            path.unlink()
        return sorted(texts)

    def _read_machine_code(self):
        for path in self.folder.glob("*" + _COMPILED):
            with path.open() as lines:  # the log of all passes opens with the input of the first
                text = "".join(itertools.takewhile(lambda line: line[0] != "}", lines))
            path.unlink()  # megabytes
            code = sass.facts(path.with_name(path.name.removesuffix(_COMPILED)), self.architecture)
            codes = self._codes[mosaic.identity(text)]
            if code not in codes:
                codes.append(code)

    def _machine_code(self, text, texts):
        identity = mosaic.identity(text)
        known = self._by_text[identity]
        if text not in known:
            unknown = [t for t in texts if t not in known and mosaic.identity(t) == identity]
            codes = self._codes[identity]
            found = [code for code in codes if code not in known.values()] or codes
            if len(found) != 1:
                name, buffers = identity
                raise LookupError(
                    f"{len(unknown)} kernels `{name}` of {buffers} were lowered, and {len(found)} "
                    "compiled. Give kernels that differ names that differ."
                )
            known |= dict.fromkeys(unknown, found[0])
        return known[text]
