"""State: what an optimizer remembers.

NamedTuples of trees shaped like the parameters, which is what Optax's tree functions, Orbax and
Flax all understand.
"""

from typing import Any, NamedTuple


class LionState(NamedTuple):
    """The state of a Lion optimizer. Trees are shaped like the parameters.

    - `count`: int32 scalar, the steps taken.
    - `mu`: the momentum: uint8 codes in the parameter's shape, or float32.
    - `mu_absmax`: float32 scales of the codes, one per block (see `pallas_kernels.quantize`); for a
      float32 leaf one unused zero. None if no leaf can be 8-bit.
    - `gnorm_history`: the last 100 squared gradient norms per leaf, float32, or None without
      percentile clipping.
    - `layout`: what the codes mean, as the name of its only entry, such as `"power_256_v2"` (codec,
      block size, format); the entry itself is an int32 zero. None in 32 bits.
    - `skipped`: int32 scalar, the elements that were left alone in all steps because their gradient
      was not finite; None without `StateOptions(count_skipped=True)`.
    - `residual`: what parameters of 16 bits lack of their value, int8 in the parameter's shape; for
      a leaf of other parameters one unused zero. None without
      `StateOptions(param_rounding="compensated")`. See `full_precision`.

    Zeros are a fresh state, for the whole of it or a part: `mu=jnp.where(part, 0, state.mu)` makes
    that part begin anew.
    """

    count: Any
    mu: Any
    mu_absmax: Any = None
    gnorm_history: Any = None
    layout: Any = None
    skipped: Any = None
    residual: Any = None


class LambState(NamedTuple):
    """The state of a LAMB optimizer. Trees are shaped like the parameters.

    As `LionState`, with the second moment `nu` and, with `amsgrad`, its bias-corrected running
    maximum `nu_max` (None without).
    """

    count: Any
    mu: Any
    mu_absmax: Any = None
    nu: Any = None
    nu_absmax: Any = None
    nu_max: Any = None
    nu_max_absmax: Any = None
    gnorm_history: Any = None
    layout: Any = None
    skipped: Any = None
    residual: Any = None


class AdamState(NamedTuple):
    """The state of an AdamW optimizer: what `LambState` is for LAMB."""

    count: Any
    mu: Any
    mu_absmax: Any = None
    nu: Any = None
    nu_absmax: Any = None
    nu_max: Any = None
    nu_max_absmax: Any = None
    gnorm_history: Any = None
    layout: Any = None
    skipped: Any = None
    residual: Any = None


STATES = LionState, LambState, AdamState


HISTORY = 100
"""Norms that percentile clipping remembers."""


class ClipByPercentileState(NamedTuple):
    """State of `clip_by_percentile`: steps taken, and the last 100 squared norms.

    `gnorm_history` is a tree of float32[100] like the parameters, or a single one if
    `scope="global"`.
    """

    count: Any
    gnorm_history: Any
