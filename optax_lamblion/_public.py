"""The public names. `optax_lamblion` has them as its own, and imports this file for the first."""

from optax_lamblion._checkpoints.bitsandbytes.export import to_bitsandbytes
from optax_lamblion._checkpoints.bitsandbytes.load import from_bitsandbytes
from optax_lamblion._checkpoints.check import StateCheck, StateFault, check_state
from optax_lamblion._checkpoints.conversion import convert_state, restore_target
from optax_lamblion._optimizers.adamw import (
    adamw,
    adamw8bit,
    adamw32bit,
    paged_adamw,
    paged_adamw8bit,
    paged_adamw32bit,
    scale_by_adam,
)
from optax_lamblion._optimizers.clipping import clip_by_percentile
from optax_lamblion._optimizers.fused import apply_fused
from optax_lamblion._optimizers.global_norm import clip_by_global_norm
from optax_lamblion._optimizers.lamb import (
    lamb,
    lamb8bit,
    lamb32bit,
    paged_lamb,
    paged_lamb8bit,
    paged_lamb32bit,
    scale_by_lamb,
)
from optax_lamblion._optimizers.lion import (
    lion,
    lion8bit,
    lion32bit,
    paged_lion,
    paged_lion8bit,
    paged_lion32bit,
    scale_by_lion,
)
from optax_lamblion._state.options import StateOptions
from optax_lamblion._state.precision import full_precision, share_moved
from optax_lamblion._state.report import StateReport, state_report
from optax_lamblion._state.sharding import state_sharding
from optax_lamblion._state.types import AdamState, ClipByPercentileState, LambState, LionState

__all__ = [
    "AdamState",
    "ClipByPercentileState",
    "LambState",
    "LionState",
    "StateCheck",
    "StateFault",
    "StateOptions",
    "StateReport",
    "adamw",
    "adamw32bit",
    "adamw8bit",
    "apply_fused",
    "check_state",
    "clip_by_global_norm",
    "clip_by_percentile",
    "convert_state",
    "from_bitsandbytes",
    "full_precision",
    "lamb",
    "lamb32bit",
    "lamb8bit",
    "lion",
    "lion32bit",
    "lion8bit",
    "paged_adamw",
    "paged_adamw32bit",
    "paged_adamw8bit",
    "paged_lamb",
    "paged_lamb32bit",
    "paged_lamb8bit",
    "paged_lion",
    "paged_lion32bit",
    "paged_lion8bit",
    "restore_target",
    "scale_by_adam",
    "scale_by_lamb",
    "scale_by_lion",
    "share_moved",
    "state_report",
    "state_sharding",
    "to_bitsandbytes",
]
