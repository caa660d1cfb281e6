"""What comes of a checkpoint of which a file is missing or cut short, as JSON on the last line.

In a process of its own: after an error Orbax leaves reads behind that complain when they end.
"""

import json
import pathlib
import shutil
import sys

import jax.numpy as jnp

from optax_lamblion import lion8bit, restore_target
from tests.checkpoints import problem

P = {"w": jnp.ones((128, 512))}  # its codes are in a file of their own
TX = lion8bit()


def outcome(folder, whole):
    """What a restore of that folder gives: `"whole"`, `"other numbers"` or `"refused"`."""
    try:
        target = restore_target(TX, P, problem.metadata(folder))
        restored = problem.restore(folder, target)
    except Exception:
        return "refused"
    return "whole" if problem.bits(restored) == whole else "other numbers"


def main(folder):
    """Saves a state and damages one file after the other."""
    state = problem.filled(TX.init(P))
    saved, damaged, out = folder / "saved", folder / "damaged", {}
    problem.save(saved, state)
    for path in sorted(x for x in saved.rglob("*") if x.is_file()):
        name, content = path.relative_to(saved), path.read_bytes()
        for how, left in [("missing", None), ("cut", content[: len(content) // 2])]:
            shutil.copytree(saved, damaged)
            (damaged / name).unlink()
            if left is not None:
                (damaged / name).write_bytes(left)
            out[f"{name} {how}"] = outcome(damaged, problem.bits(state))
            shutil.rmtree(damaged)
    print(json.dumps(out))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
