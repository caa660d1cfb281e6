"""LAMB and its variants, with 32-bit or 8-bit moments."""

import optax
from jax.typing import ArrayLike

from optax_lamblion._optimizers.settings import (
    Settings,
    check_bool,
    check_learning_rate,
    factory,
)
from optax_lamblion._optimizers.transform import make
from optax_lamblion._state.options import Mask, StateOptions
from optax_lamblion._state.types import LambState
from pallas_kernels.arithmetic.rules import LAMB, LAMB_AMSGRAD


@factory
def lamb(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    max_unorm: optax.ScalarOrSchedule | None = None,
    trust_clip: tuple[ArrayLike, ArrayLike] | None = None,
    bits: int | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""LAMB with 32-bit or 8-bit moments.

    Adam's direction, scaled for every leaf by a trust ratio, so that the norm of the update is the
    learning rate times the norm of the leaf. Designed for training with large batches.

    .. math::
      m_t &= b_1 m_{t-1} + (1 - b_1) g_t \\
      v_t &= b_2 v_{t-1} + (1 - b_2) g_t^2 \\
      u_t &= \frac{m_t / (1 - b_1^t)}{\sqrt{v_t / (1 - b_2^t)} + \epsilon} + \lambda\theta \\
      r &= \|\theta\| / \|u_t\| \\
      \Delta\theta &= {-}\eta\, r\, u_t

    The trust ratio `r` is 1 if either norm is 0, so a leaf of zeros can train. With 8 bits, the
    direction is computed from the moments as stored, so that the norm of the update is exact. Both
    moments are rounded without bias (`docs/rounding.md`), and `v` is never rounded to 0 unless it
    is 0. Gradient elements that are not finite, or larger than 2**63, are skipped: their parameters
    and moments stay unchanged.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      b1: :math:`b_1`, the decay of the first moment; a number in [0, 1) or a schedule.
      b2: :math:`b_2`, the decay of the second moment; a number in [0, 1) or a schedule.
      eps: :math:`\epsilon`, outside the root. The default is bitsandbytes'; `optax.lamb` has 1e-6.
      weight_decay: :math:`\lambda`, a number or a schedule; inside the update, before the trust
        ratio.
      mask: Which leaves have weight decay: a tree of bools like the parameters, a prefix of one, or
        a function from parameters to such a tree. None means all leaves. With
        `optax.inject_hyperparams`, name a function in `static_args`; otherwise Optax takes it for a
        schedule.
      bias_correction: False omits the divisions by :math:`1 - b^t`.
      amsgrad: Divide by the square root of the running maximum of the bias-corrected second moment,
        like `optax.scale_by_amsgrad`. Stores a third moment.
      adam_w_mode: False adds :math:`\lambda\theta` to the gradient (L2 regularisation) instead of
        to the update.
      max_unorm: A number :math:`x` replaces the trust ratio with bitsandbytes' cap
        :math:`\min(1, x \|\theta\| / \|u_t\|)`, which never lengthens a step; 0 turns it off, and
        the ratio is 1.
      trust_clip: A pair `(low, high)` to which the trust ratio is clipped. `(1.0, 1.0)` is AdamW.
      bits: 8 for 8-bit moments; 32 or None for float32.
      min_8bit_size: With `bits=8`, leaves with fewer elements keep 32-bit state; None means 4096,
        as in `StateOptions`.
      block_wise: With `bits=8`, False uses a single scale per leaf instead of one per 256 elements.
      percentile_clipping: Clips the norm of a leaf's gradient to this percentile of its last 100
        norms, an int from 0 to 98 (99 is their maximum and clips nothing). None and 100 turn it
        off. See `clip_by_percentile`.
      paged: True keeps the state of large leaves in host memory and streams it through the device
        in every step; see `paged_lamb`.
      options: Less common choices about the state; see `StateOptions`.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose `update` needs `params`. Updates have the
      dtype that parameters and gradients promote to; arithmetic is in float32 (float64 for float64
      leaves).

    State:
      `LambState`. 8 bytes per parameter with 32 bits, 2 + 8/256 with 8 bits; half as much again
      with `amsgrad`. `percentile_clipping` adds 400 bytes per leaf.

    Raises:
      TypeError: An argument is of the wrong kind; a parameter or gradient is not floating point.
      ValueError: An argument is out of range; `max_unorm` and `trust_clip` are both given; `update`
        lacks `params`; the state doesn't match.

    Examples:
      >>> loss = lambda p: jnp.sum(p**2)
      >>> params = jnp.array([1.0, 2.0, 3.0])
      >>> tx = lamb(0.1)
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{loss(params):.2f}")
      11.55
      9.56
      7.94

    References:
      You et al., `Large Batch Optimization for Deep Learning: Training BERT in 76 minutes
      <https://arxiv.org/abs/1904.00962>`_, 2020, Algorithm 2.
    """
    check_learning_rate("lamb", learning_rate)
    return _build(
        amsgrad,
        dict(b1=b1, b2=b2, eps=eps, bias_correction=bias_correction),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        adam_w_mode=adam_w_mode,
        max_unorm=max_unorm,
        trust_clip=trust_clip,
        bits=bits,
        min_8bit_size=min_8bit_size,
        block_wise=block_wise,
        percentile_clipping=percentile_clipping,
        paged=paged,
        options=options,
    )


def _build(amsgrad, numbers, **settings):
    check_bool("amsgrad", amsgrad)
    rule = LAMB_AMSGRAD if amsgrad else LAMB
    return make(
        Settings(family="lamb", rule=rule, state_type=LambState, numbers=numbers, **settings)
    )


@factory
def lamb8bit(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    max_unorm: optax.ScalarOrSchedule | None = None,
    trust_clip: tuple[ArrayLike, ArrayLike] | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LAMB with 8-bit moments: 2.031 bytes of state per parameter instead of 8.

    See `lamb` for the equations and arguments. Leaves with fewer than 4096 elements keep 32-bit
    moments.

    Examples:
      >>> tx = lamb8bit(1e-3, weight_decay=0.01, trust_clip=(0.0, 10.0))
      >>> state = tx.init(jnp.zeros((64, 256)))
    """
    return lamb(**locals(), bits=8)


@factory
def lamb32bit(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    max_unorm: optax.ScalarOrSchedule | None = None,
    trust_clip: tuple[ArrayLike, ArrayLike] | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LAMB with float32 moments: `optax.lamb`, with the arguments of `lamb`.

    See `lamb` for the equations and arguments. `min_8bit_size` and `block_wise` are checked and
    have no effect with 32 bits; they exist so that the variants are interchangeable.

    Examples:
      >>> tx = lamb32bit(1e-3, eps=1e-6)
      >>> state = tx.init(jnp.zeros((64, 256)))
    """
    return lamb(**locals(), bits=32)


@factory
def scale_by_lamb(
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    max_unorm: optax.ScalarOrSchedule | None = None,
    trust_clip: tuple[ArrayLike, ArrayLike] | None = None,
    bits: int | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of a LAMB step, times its trust ratio, without learning rate.

    The building block of `lamb`; see there for the arguments. It includes weight decay, because the
    trust ratio uses the norm of the direction with decay.

    Examples:
      >>> tx = optax.chain(scale_by_lamb(bits=8), optax.scale_by_learning_rate(1e-3))
      >>> state = tx.init(jnp.zeros((64, 256)))
    """
    return _build(
        amsgrad,
        dict(b1=b1, b2=b2, eps=eps, bias_correction=bias_correction),
        weight_decay=weight_decay,
        mask=mask,
        adam_w_mode=adam_w_mode,
        max_unorm=max_unorm,
        trust_clip=trust_clip,
        bits=bits,
        min_8bit_size=min_8bit_size,
        block_wise=block_wise,
        percentile_clipping=percentile_clipping,
        paged=paged,
        options=options,
    )


@factory
def paged_lamb(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    max_unorm: optax.ScalarOrSchedule | None = None,
    trust_clip: tuple[ArrayLike, ArrayLike] | None = None,
    bits: int | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LAMB with its moments in host memory (CPU offload), 32-bit or 8-bit.

    Computes the same steps as `lamb`, to the last bit; see there for the equations and arguments,
    and `paged_lion` for paging. A leaf whose state is larger than a page is read twice, because its
    trust ratio is known only after a first pass; `StateOptions.device_budget` keeps the largest
    leaves on the device.

    State:
      `LambState`, whose paged leaves have the memory kind `pinned_host`: 8 bytes per parameter with
      32 bits, 2 + 8/256 with 8 bits.

    Raises:
      ValueError: Whatever `paged_lion` and `lamb` raise.

    Examples:
      >>> tx = paged_lamb(1e-3, bits=8, weight_decay=0.01)
      >>> state = tx.init({"large": jnp.zeros((1024, 256)), "small": jnp.zeros(256)})
      >>> {name: x.sharding.memory_kind for name, x in state.nu.items()}
      {'large': 'pinned_host', 'small': 'device'}
    """
    return lamb(**locals(), paged=True)


@factory
def paged_lamb8bit(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    max_unorm: optax.ScalarOrSchedule | None = None,
    trust_clip: tuple[ArrayLike, ArrayLike] | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LAMB with 8-bit moments in host memory: 2.031 bytes per parameter there.

    See `lamb` for the equations and arguments, and `paged_lamb` for paging.

    Examples:
      >>> tx = paged_lamb8bit(1e-3, weight_decay=0.01, trust_clip=(0.0, 10.0))
      >>> state = tx.init(jnp.zeros((1024, 256)))
    """
    return lamb(**locals(), bits=8, paged=True)


@factory
def paged_lamb32bit(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    max_unorm: optax.ScalarOrSchedule | None = None,
    trust_clip: tuple[ArrayLike, ArrayLike] | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LAMB with float32 moments in host memory: 8 bytes per parameter there.

    See `lamb` for the equations and arguments, and `paged_lamb` for paging.

    Examples:
      >>> tx = paged_lamb32bit(1e-3, eps=1e-6)
      >>> state = tx.init(jnp.zeros((1024, 256)))
    """
    return lamb(**locals(), bits=32, paged=True)
