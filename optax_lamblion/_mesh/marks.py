"""Marks, by which JAX's persistent cache tells steps apart that XLA asks Python for.

What such a step is, the text of a program does not say: there it is an address, or, with
`jax_remove_custom_partitioning_ptr_from_cache_key`, nothing. A step of AdamW would then be taken
for one of LAMB, which has arguments of the same shapes.
"""

import functools
import hashlib
import re
from pathlib import Path

import jax

import pallas_kernels


def mark(program, args):
    """A text that only equal programs of the same code have, in every process."""
    text = repr((_code(), program, jax.tree.structure(args)))
    return hashlib.sha256(re.sub(" at 0x[0-9a-f]+", "", text).encode()).hexdigest()


@functools.cache
def _code():
    """A digest of the code of both packages, which may change without its version."""
    folders = Path(__file__).parents[1], Path(*pallas_kernels.__path__)
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
