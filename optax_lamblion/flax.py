"""Optimizers for Flax: `Optimizer` for NNX and `TrainState` for Linen.

Both are Flax's own classes with another step, `apply_fused`, and with one way to a checkpoint and
back. They take any Optax transformation. Everything else of this package works without Flax.
"""

try:
    import flax  # noqa: F401
except ImportError as error:
    raise ImportError(
        "`optax_lamblion.flax` needs Flax, which is not installed. Install it with "
        "`pip install 'flax>=0.12.10'`."
    ) from error

from optax_lamblion._flax.linen import TrainState
from optax_lamblion._flax.nnx import Optimizer, shardings

__all__ = ["Optimizer", "TrainState", "shardings"]
