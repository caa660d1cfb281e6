"""AdamW and its variants, with 32-bit or 8-bit moments, on the device or in host memory."""

import optax

from optax_lamblion._optimizers.settings import (
    Settings,
    check_bool,
    check_learning_rate,
    factory,
)
from optax_lamblion._optimizers.transform import make
from optax_lamblion._state.options import Mask, StateOptions
from optax_lamblion._state.types import AdamState
from pallas_kernels.arithmetic.rules import ADAM, ADAM_AMSGRAD


@factory
def adamw(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-2,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    bits: int | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW with 32-bit or 8-bit moments.

    Adam with decoupled weight decay. Hyper-parameters of any other AdamW carry over unchanged, also
    to 8 bits.

    .. math::
      m_t &= b_1 m_{t-1} + (1 - b_1) g_t \\
      v_t &= b_2 v_{t-1} + (1 - b_2) g_t^2 \\
      u_t &= \frac{m_t / (1 - b_1^t)}{\sqrt{v_t / (1 - b_2^t)} + \epsilon} \\
      \Delta\theta &= {-}\eta\,(u_t + \lambda\theta)

    With 8 bits, the direction is computed from the moments as stored. Both are rounded without bias
    (`docs/rounding.md`), and `v` is never rounded to 0 unless it is 0. Gradient elements that are
    not finite, or larger than 2**63, are skipped: their parameters and moments stay unchanged.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      b1: :math:`b_1`, the decay of the first moment; a number in [0, 1) or a schedule.
      b2: :math:`b_2`, the decay of the second moment; a number in [0, 1) or a schedule.
      eps: :math:`\epsilon`, outside the root.
      weight_decay: :math:`\lambda`, a number or a schedule. The default is bitsandbytes' and
        PyTorch's; `optax.adamw` has 1e-4. If it isn't zero, `update` needs `params`.
      mask: Which leaves have weight decay: a tree of bools like the parameters, a prefix of one, or
        a function from parameters to such a tree. None means all leaves. With
        `optax.inject_hyperparams`, name a function in `static_args`; otherwise Optax takes it for a
        schedule.
      bias_correction: False omits the divisions by :math:`1 - b^t`.
      amsgrad: Divide by the square root of the running maximum of the bias-corrected second moment,
        like `optax.scale_by_amsgrad`. Stores a third moment.
      adam_w_mode: False adds :math:`\lambda\theta` to the gradient (L2 regularisation) instead of
        to the update, like `torch.optim.Adam`.
      bits: 8 for 8-bit moments; 32 or None for float32.
      min_8bit_size: With `bits=8`, leaves with fewer elements keep 32-bit state; None means 4096,
        as in `StateOptions`.
      block_wise: With `bits=8`, False uses a single scale per leaf instead of one per 256 elements.
      percentile_clipping: Clips the norm of a leaf's gradient to this percentile of its last 100
        norms, an int from 0 to 98 (99 is their maximum and clips nothing). None and 100 turn it
        off. See `clip_by_percentile`.
      paged: True keeps the state of large leaves in host memory and streams it through the device
        in every step; see `paged_adamw`.
      options: Less common choices about the state; see `StateOptions`.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Updates have the dtype that parameters and
      gradients promote to; arithmetic is in float32 (float64 for float64 leaves).

    State:
      `AdamState`. 8 bytes per parameter with 32 bits, 2 + 8/256 with 8 bits; half as much again
      with `amsgrad`. `percentile_clipping` adds 400 bytes per leaf.

    Raises:
      TypeError: An argument is of the wrong kind; a parameter or gradient is not floating point.
      ValueError: An argument is out of range; `update` lacks `params`; the state doesn't match.

    Examples:
      >>> loss = lambda p: jnp.sum(p**2)
      >>> params = jnp.array([1.0, 2.0, 3.0])
      >>> tx = adamw(0.1)
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{loss(params):.2f}")
      12.80
      11.67
      10.61

    References:
      Loshchilov & Hutter, `Decoupled Weight Decay Regularization
      <https://arxiv.org/abs/1711.05101>`_, 2019, Algorithm 2; Kingma & Ba, `Adam
      <https://arxiv.org/abs/1412.6980>`_, 2015, Algorithm 1.
    """
    check_learning_rate("adam", learning_rate)
    return _build(
        amsgrad,
        dict(b1=b1, b2=b2, eps=eps, bias_correction=bias_correction),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        adam_w_mode=adam_w_mode,
        bits=bits,
        min_8bit_size=min_8bit_size,
        block_wise=block_wise,
        percentile_clipping=percentile_clipping,
        paged=paged,
        options=options,
    )


def _build(amsgrad, numbers, **settings):
    check_bool("amsgrad", amsgrad)
    rule = ADAM_AMSGRAD if amsgrad else ADAM
    return make(
        Settings(family="adamw", rule=rule, state_type=AdamState, numbers=numbers, **settings)
    )


@factory
def adamw8bit(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-2,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with 8-bit moments: 2.031 bytes of state per parameter instead of 8.

    See `adamw` for the equations and arguments. Leaves with fewer than 4096 elements keep
    32-bit moments.

    Examples:
      >>> tx = optax.chain(clip_by_global_norm(1.0), adamw8bit(3e-4, weight_decay=0.1))
      >>> state = tx.init(jnp.zeros((64, 256)))
    """
    return adamw(**locals(), bits=8)


@factory
def adamw32bit(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-2,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with float32 moments: `optax.adamw`, with the arguments of `adamw`.

    See `adamw` for the equations and arguments. `min_8bit_size` and `block_wise` are checked and
    have no effect with 32 bits; they exist so that the variants are interchangeable.

    Examples:
      >>> tx = adamw32bit(3e-4, b2=0.95)
      >>> state = tx.init(jnp.zeros((64, 256)))
    """
    return adamw(**locals(), bits=32)


@factory
def scale_by_adam(
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    bits: int | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of an AdamW step, without learning rate and weight decay.

    The building block of `adamw`, like `optax.scale_by_adam`. See `adamw` for the arguments.

    Examples:
      >>> tx = optax.chain(scale_by_adam(bits=8), optax.scale_by_learning_rate(3e-4))
      >>> state = tx.init(jnp.zeros((64, 256)))
    """
    return _build(
        amsgrad,
        dict(b1=b1, b2=b2, eps=eps, bias_correction=bias_correction),
        bits=bits,
        min_8bit_size=min_8bit_size,
        block_wise=block_wise,
        percentile_clipping=percentile_clipping,
        paged=paged,
        options=options,
    )


@factory
def paged_adamw(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-2,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    bits: int | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with its moments in host memory (CPU offload), 32-bit or 8-bit.

    Computes the same steps as `adamw`; see there for the equations and arguments, and `paged_lion`
    for paging.

    State:
      `AdamState`, whose paged leaves have the memory kind `pinned_host`: 8 bytes per parameter with
      32 bits, 2 + 8/256 with 8 bits.

    Raises:
      ValueError: Whatever `paged_lion` and `adamw` raise.

    Examples:
      >>> tx = paged_adamw(3e-4, bits=8)
      >>> state = tx.init({"large": jnp.zeros((1024, 256)), "small": jnp.zeros(256)})
      >>> {name: x.sharding.memory_kind for name, x in state.nu.items()}
      {'large': 'pinned_host', 'small': 'device'}
    """
    return adamw(**locals(), paged=True)


@factory
def paged_adamw8bit(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-2,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with 8-bit moments in host memory: 2.031 bytes per parameter there.

    See `adamw` for the equations and arguments, and `paged_lion` for paging.

    Examples:
      >>> tx = paged_adamw8bit(3e-4, weight_decay=0.1)
      >>> state = tx.init(jnp.zeros((1024, 256)))
    """
    return adamw(**locals(), bits=8, paged=True)


@factory
def paged_adamw32bit(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.999,
    eps: optax.ScalarOrSchedule = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 1e-2,
    mask: Mask = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW with float32 moments in host memory: 8 bytes per parameter there.

    See `adamw` for the equations and arguments, and `paged_lion` for paging.

    Examples:
      >>> tx = paged_adamw32bit(3e-4, options=StateOptions(device_budget=2 * 2**30))
      >>> state = tx.init(jnp.zeros((1024, 256)))
    """
    return adamw(**locals(), bits=32, paged=True)
