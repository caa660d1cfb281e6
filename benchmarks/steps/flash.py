"""The rival in JAX: flashoptim-jax 0.1.0, by its unfused path where there is no GPU.

It has no LAMB. Its error bits, which add precision to 16-bit parameters, are off, as ours are:
that is its least work.
"""

import jax

from optax_lamblion.demo import contest, timing

PACKAGE = "flashoptim-jax"


def of_family(family, arrays):
    """Its entries of a family."""
    import flashoptim_jax  # pyright: ignore[reportMissingImports]

    make = {"lion": flashoptim_jax.flash_lion, "adamw": flashoptim_jax.flash_adamw}.get(family)
    if make is None:
        return []
    fused = jax.default_backend() == "gpu"
    tx = make(1e-4, weight_decay=0.1, master_weight_bits=None, fused=fused)

    def step(carry, gradients):
        return tx.step(*carry, gradients)

    # Not compiled: XLA would fold its constants, whole leaves of them, for minutes.
    program = timing.Program(step, arrays.carry(tx.init), arrays.gradients)
    return [contest.Entry(f"flash_{family}", "fused" if fused else "unfused", program)]
