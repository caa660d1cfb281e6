"""Writes `tests/interop/exported`: states of Lion for bitsandbytes, which `./dev peers` loads.

Run it at the root of the checkout:

    .venv/bin/python -m tests.interop.write_exported [FOLDER]
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import optax

from optax_lamblion import StateOptions, lion8bit, lion32bit, to_bitsandbytes
from optax_lamblion._checkpoints.bitsandbytes import files
from tests.interop import problem

FOLDER = pathlib.Path(__file__).parent / "exported"
NAMES = ["small", "matrix", "ragged"]
SETTINGS = dict(learning_rate=1e-3, b1=0.9, b2=0.99, weight_decay=0.1)
OPTIMIZERS = {
    "lion8bit": lion8bit(**SETTINGS, options=StateOptions(codec="dynamic")),
    "lion32bit": lion32bit(**SETTINGS),
}


def after_steps(tx):
    """The state after some steps on the parameters and gradients of `problem`."""
    p = {name: jnp.asarray(problem.params()[name]) for name in NAMES}
    state, update = tx.init(p), jax.jit(tx.update)
    for step in range(problem.STEPS):
        g = {name: jnp.asarray(problem.gradient(name, step)) for name in NAMES}
        updates, state = update(g, state, p)
        p = optax.apply_updates(p, updates)
    return state


def exported(name):
    """One of the checkpoints."""
    return to_bitsandbytes(after_steps(OPTIMIZERS[name]), names=NAMES, **SETTINGS)


def main(folder=FOLDER):
    """Writes all of them."""
    folder.mkdir(exist_ok=True)
    for name in OPTIMIZERS:
        files.write(folder / f"{name}.safetensors", exported(name))


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
