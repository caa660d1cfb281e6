"""`python -m benchmarks.guard`: what a change must not make worse unseen, and takes no clock.

Of steps as XLA compiles them for a CPU: bytes of state and of temporary memory, passes over a leaf
and the bytes that these move; and a digest of the codes that fixed gradients lead to. With
`--write` they become the record that tests compare with, so a change of one is seen in its diff.
"""

import argparse
import hashlib
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import records
from benchmarks.markdown import table
from optax_lamblion.demo import contest, timing
from optax_lamblion.demo.optimizers import OPTIMIZERS
from tests.deviceless import hlo

COMMAND = "python -m benchmarks.guard --write"
NAME = "guard"
_OURS = ("lion8bit", "lamb8bit", "adamw8bit", "lion32bit", "lamb32bit", "adamw32bit")
_SHAPES = {"rows": (4096, 4096), "ragged": (2**22 + 1,)}
_FORMS = (
    ("rows", "float32", "apply_fused"),
    ("rows", "float32", "update"),
    ("rows", "bfloat16", "apply_fused"),
    ("ragged", "float32", "apply_fused"),
)
CASES = tuple(
    (name, *form)
    for name in _OURS
    # Blocks, which are what shapes matter for, and bfloat16's rounding are those of 8 bits.
    for form in (_FORMS if name.endswith("8bit") else _FORMS[:1])
)
_THEIRS = tuple((f"optax.{family}", *_FORMS[1]) for family in contest.FAMILIES)
"""To compare with, and not guarded."""
_DIGEST_SHAPES = {"rows": (32, 1024), "ragged": (4097,)}
_DIGEST_STEPS = 3
DIGESTED = ("lion8bit", "adamw8bit")  # LAMB's moments are AdamW's
# What moves nothing: names for parts of other things.
_NAMING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


def footprint(name, shape, dtype, way):
    """Bytes per parameter of a compiled step, and how often it passes over a leaf."""
    leaf = {"leaf": jax.ShapeDtypeStruct(_SHAPES[shape], dtype)}
    size = math.prod(_SHAPES[shape])
    tx = _optimizer(name)
    state = jax.eval_shape(tx.init, leaf)
    program = timing.compiled(timing.stepping(tx, way), (leaf, state), leaf)
    passes = list(_passes(hlo.parse(program.call.as_text()), size))
    return {
        "state_bytes_per_parameter": _rounded(timing.bytes_of(state) / size),
        "temporary_bytes_per_parameter": _rounded(program.temporary_bytes / size),
        "passes": len(passes),
        "moved_bytes_per_parameter": _rounded(sum(passes) / size),
    }


def _passes(program, size):
    """The bytes that each instruction reads and writes that goes over a leaf."""
    instructions = program.entry.instructions
    for x in instructions.values():
        if x.opcode in _NAMING:
            continue
        arrays = [y for name in dict.fromkeys(x.operands) for y in instructions[name].arrays]
        arrays += x.arrays
        if any(math.prod(y.shape) >= size // 2 for y in arrays):
            yield sum(y.bytes for y in arrays)


def digest(name):
    """A hash of all codes after some steps of fixed gradients."""
    tx = _optimizer(name)
    params = {key: jnp.ones(shape) for key, shape in _DIGEST_SHAPES.items()}
    state = tx.init(params)
    step = jax.jit(timing.stepping(tx, "apply_fused"))
    for i in range(_DIGEST_STEPS):
        gradients = {
            key: _fixed(shape, 2 * i + j) for j, (key, shape) in enumerate(_DIGEST_SHAPES.items())
        }
        params, state = step((params, state), gradients)
    codes = [x for x in jax.tree.leaves(state) if x.dtype == jnp.uint8]
    return hashlib.blake2b(
        b"".join(np.asarray(x).tobytes() for x in codes), digest_size=8
    ).hexdigest()


def _fixed(shape, seed):
    """Numbers from -1 to 1 that are the same with every version of NumPy."""
    raw = np.random.PCG64(seed).random_raw(math.prod(shape)) >> np.uint64(40)
    return jnp.asarray((raw.astype(np.float32) / np.float32(2**23) - 1).reshape(shape))


def _optimizer(name):
    return contest.optimizer(OPTIMIZERS[name])


def _rounded(x):
    return round(x, 4)


def case_name(case):
    """A case in a word, as the record has it."""
    return " ".join(case)


def found():
    """All of it."""
    return {
        "footprints": {case_name(case): footprint(*case) for case in CASES},
        "optax": {case_name(case): footprint(*case) for case in _THEIRS},
        "digests": {name: digest(name) for name in DIGESTED},
    }


def shown():
    """The footprints of the record."""
    head = ["compiled step", "state, bytes per parameter", "temporary", "passes", "moved in these"]
    found = records.load(NAME)["results"]
    rows = [
        [f"`{name}`", *x.values()] for name, x in (found["footprints"] | found["optax"]).items()
    ]
    return table(head, rows)


FIGURES = {"guard": shown}


def main(arguments=None):
    """Prints what it finds, or keeps it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep it as the record")
    args = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    now = found()
    for name, footprint_ in (now["footprints"] | now["optax"]).items():
        print(f"{name:36}", *(f"{x:>8}" for x in footprint_.values()))
    for name, digest_ in now["digests"].items():
        print(f"{name:36} {digest_}")
    if args.write:
        records.save(NAME, records.new(COMMAND, now))
    return 0


if __name__ == "__main__":
    sys.exit(main())
