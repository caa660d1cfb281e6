"""The same steps in wider vectors.

Where a CPU has AVX-512, XLA's compiler takes vectors of 256 bits, unless it is told otherwise.
"""

from optax_lamblion.demo import contest, timing
from optax_lamblion.demo.optimizers import OPTIMIZERS

WAY = "512-bit vectors"
OPTIONS = {"xla_cpu_prefer_vector_width": "512"}


def of_family(family, arrays):
    """Optax's optimizer and our 8-bit one, compiled so."""
    return [
        contest.Entry(name, WAY, _program(OPTIMIZERS[name], way, arrays))
        for name, way in (
            (f"optax.{family}", contest.UPDATE),
            (f"{family}8bit", contest.APPLY_FUSED),
        )
    ]


def _program(row, way, arrays):
    tx = contest.optimizer(row)
    step, carry = timing.stepping(tx, way), arrays.carry(tx.init)
    return timing.Program(step, carry, arrays.gradients, OPTIONS)
