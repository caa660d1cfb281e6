"""The state of an optimizer.

NamedTuples of trees shaped like the parameters, which is what Optax's tree functions, Orbax and
Flax all understand.
"""

from typing import Any, NamedTuple


class LionState(NamedTuple):
    """The state of a Lion optimizer. Trees are shaped like the parameters.

    - `count`: int32 scalar, the number of steps taken.
    - `mu`: the momentum: uint8 codes in the parameter's shape, or float32.
    - `mu_absmax`: float32 scales of the codes, one per block (see `pallas_kernels.quantize`); a
      single unused zero for float32 leaves. None if no leaf can be 8-bit.
    - `gnorm_history`: the last 100 squared gradient norms per leaf, float32, or None without
      percentile clipping.
    - `layout`: the meaning of the codes, as the name of its only entry, such as `"power_256_v2"`
      (codec, block size, format); the entry itself is an int32 zero. None in 32-bit states.
    - `skipped`: int32 scalar, the number of elements skipped so far because their gradient was not
      finite; None without `StateOptions(count_skipped=True)`.
    - `residual`: the low bits that 16-bit parameters lack, int8 with the parameter's shape; a
      single unused zero for other parameters. None without
      `StateOptions(param_rounding="compensated")`. See `full_precision`.

    Zeros are a fresh state, as a whole or in part: `mu=jnp.where(part, 0, state.mu)` resets that
    part.
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

    Like `LionState`, with the second moment `nu` and, with `amsgrad`, its bias-corrected running
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
    """The state of an AdamW optimizer, with the fields of `LambState`."""

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
    """The state of `clip_by_percentile`: the number of steps, and the last 100 squared norms.

    `gnorm_history` is a tree of float32[100] like the parameters, or a single one if
    `scope="global"`.
    """

    count: Any
    gnorm_history: Any
