"""LAMB by name, with its moments in 32 or 8 bits."""

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
    r"""LAMB, with its moments in 32 or 8 bits.

    Adam's direction, scaled per leaf so that a step is as long as the learning rate times the
    leaf's own norm. For training with large batches.

    .. math::
      m_t &= b_1 m_{t-1} + (1 - b_1) g_t, \qquad v_t = b_2 v_{t-1} + (1 - b_2) g_t^2 \\
      u_t &= \frac{m_t / (1 - b_1^t)}{\sqrt{v_t / (1 - b_2^t)} + \epsilon} + \lambda\theta \\
      \Delta\theta &= -\eta\, r\, u_t, \qquad r = \|\theta\| / \|u_t\|

    The trust ratio `r` is 1 when either norm is 0, so a leaf of zeros trains. In 8 bits the
    direction is computed from the moments as they were stored, so that the step's length is exact;
    both are rounded without bias (`docs/rounding.md`), and `v` never to 0 unless it is 0.
    A gradient element that is not finite, or larger than 2**63, leaves its parameter and its
    moments as they were.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      b1: :math:`b_1`, the decay of the first moment; a number in [0, 1) or a schedule.
      b2: :math:`b_2`, the decay of the second moment; a number in [0, 1) or a schedule.
      eps: :math:`\epsilon`, outside the root. The default is bitsandbytes'; `optax.lamb` has 1e-6.
      weight_decay: :math:`\lambda`, a number or a schedule; inside the update, before the trust
        ratio.
      mask: Which leaves decay: a tree of bools like the parameters or a prefix of it, or a function
        that makes one from the parameters. None decays all. Under `optax.inject_hyperparams` name
        it in `static_args`, which else takes a function for a schedule.
      bias_correction: False leaves out the divisions by :math:`1 - b^t`.
      amsgrad: Divide by the root of the running maximum of the bias-corrected second moment, as
        `optax.scale_by_amsgrad` does. Keeps a third slot.
      adam_w_mode: False adds :math:`\lambda\theta` to the gradient (L2 regularisation) instead of
        to the update.
      max_unorm: A number :math:`x` replaces the trust ratio by bitsandbytes' cap
        :math:`\min(1, x \|\theta\| / \|u_t\|)`, which never lengthens a step; 0 switches it off,
        so that the ratio is 1.
      trust_clip: A pair `(low, high)` that the trust ratio is clipped to. `(1.0, 1.0)` is AdamW.
      bits: 8 stores the moments in 8 bits, 32 or None in 32.
      min_8bit_size: With 8 bits, leaves with fewer elements stay in 32; None means the 4096 of
        `StateOptions`.
      block_wise: With 8 bits, False gives a leaf one scale in all instead of one per 256 elements.
      percentile_clipping: Scales a leaf's gradient to this percentile of its last 100 norms, an int
        from 0 to 98 (99 is the largest of them, and clips nothing); None and 100 are off. See
        `clip_by_percentile`.
      paged: True keeps the state of large leaves in host memory and streams it through the device
        in every step; see `paged_lamb`.
      options: The rarer choices about state; see `StateOptions`.

    Returns:
      An `optax.GradientTransformationExtraArgs` whose `update` needs `params`. Updates have the
      dtype that parameters and gradients promote to; arithmetic is in float32 (float64 for float64
      leaves).

    State:
      `LambState`. 8 bytes per parameter in 32 bits; 2 + 8/256 in 8; half as much again with
      `amsgrad`. 400 bytes per leaf more with `percentile_clipping`.

    Raises:
      TypeError: An argument is of the wrong kind; a parameter or gradient is not floating point.
      ValueError: An argument is out of range; `max_unorm` and `trust_clip` are both given; `update`
        lacks `params`; a state does not fit.

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

    See `lamb` for the equations and arguments. A leaf of fewer than 4096 elements keeps its moments
    in 32 bits.

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
    have nothing to act on in 32 bits; they are here so that variants can be exchanged.

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

    The building block of `lamb`; see there for the arguments. Weight decay is part of it, because
    the trust ratio is taken of the decayed direction.

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
    """LAMB with its moments in host memory, in 32 or 8 bits.

    Takes the steps of `lamb`, to the last bit; see there for the equations and arguments, and
    `paged_lion` for what paging does. A leaf whose state is larger than a page has to be read
    twice, because its trust ratio is known only when all of it has been stepped once:
    `StateOptions.device_budget` keeps such leaves on the device first.

    State:
      `LambState`, of which leaves that are paged have the memory kind `pinned_host`: 8 bytes per
      parameter in 32 bits, 2 + 8/256 in 8.

    Raises:
      ValueError: As `paged_lion`; and what `lamb` raises.

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

    See `lamb` for the equations and arguments, and `paged_lamb` for what paging does.

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

    See `lamb` for the equations and arguments, and `paged_lamb` for what paging does.

    Examples:
      >>> tx = paged_lamb32bit(1e-3, eps=1e-6)
      >>> state = tx.init(jnp.zeros((1024, 256)))
    """
    return lamb(**locals(), bits=32, paged=True)
