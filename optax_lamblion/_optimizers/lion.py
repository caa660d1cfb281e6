"""Lion and its variants, with 32-bit or 8-bit momentum."""

import optax

from optax_lamblion._optimizers.settings import Settings, check_learning_rate, factory
from optax_lamblion._optimizers.transform import make
from optax_lamblion._state.options import Mask, StateOptions
from optax_lamblion._state.types import LionState
from pallas_kernels.arithmetic.rules import LION


@factory
def lion(
    learning_rate: optax.ScalarOrSchedule = 1e-4,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.99,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    bits: int | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Lion with 32-bit or 8-bit momentum.

    The update is the sign of a weighted sum of momentum and gradient, so every element moves by the
    learning rate. Lion stores one moment per parameter, half as much as Adam. Coming from AdamW,
    divide the learning rate by 3 to 10 and multiply the weight decay by the same factor.

    .. math::
      u_t &= \operatorname{sign}(b_1 m_{t-1} + (1 - b_1) g_t) \\
      m_t &= b_2 m_{t-1} + (1 - b_2) g_t \\
      \Delta\theta &= {-}\eta\,(u_t + \lambda\theta)

    Non-finite gradient elements are skipped: their parameters and momentum stay unchanged.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      b1: :math:`b_1`, the weight of the momentum in its sum with the gradient; a number in [0, 1)
        or a schedule.
      b2: :math:`b_2`, the decay of the momentum; a number in [0, 1) or a schedule.
      weight_decay: :math:`\lambda`, decoupled; a number or a schedule. If it isn't zero, `update`
        needs `params`.
      mask: Which leaves have weight decay: a tree of bools like the parameters, a prefix of one, or
        a function from parameters to such a tree. None means all leaves. With
        `optax.inject_hyperparams`, name a function in `static_args`; otherwise Optax takes it for a
        schedule.
      bits: 8 for 8-bit momentum; 32 or None for float32.
      min_8bit_size: With `bits=8`, leaves with fewer elements keep 32-bit state; None means 4096,
        as in `StateOptions`.
      block_wise: With `bits=8`, False uses a single scale per leaf instead of one per 256 elements.
      percentile_clipping: Clips the norm of a leaf's gradient to this percentile of its last 100
        norms, an int from 0 to 98 (99 is their maximum and clips nothing). None and 100 turn it
        off. See `clip_by_percentile`.
      paged: True keeps the state of large leaves in host memory and streams it through the device
        in every step; see `paged_lion`.
      options: Less common choices about the state; see `StateOptions`.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Updates have the dtype that parameters and
      gradients promote to; arithmetic is in float32 (float64 for float64 leaves).

    State:
      `LionState`. 4 bytes per parameter with 32 bits, 1 + 4/256 with 8 bits. `percentile_clipping`
      adds 400 bytes per leaf.

    Raises:
      TypeError: An argument is of the wrong kind; a parameter or gradient is not floating point.
      ValueError: An argument is out of range; `update` lacks `params`; the state doesn't match.

    Examples:
      >>> loss = lambda p: jnp.sum(p**2)
      >>> params = jnp.array([1.0, 2.0, 3.0])
      >>> tx = lion(0.1)
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{loss(params):.2f}")
      12.83
      11.72
      10.67

    References:
      Chen et al., `Symbolic Discovery of Optimization Algorithms
      <https://arxiv.org/abs/2302.06675>`_, 2023, Program 1.
    """
    check_learning_rate("lion", learning_rate)
    return make(
        Settings(
            family="lion",
            rule=LION,
            state_type=LionState,
            numbers=dict(b1=b1, b2=b2),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            mask=mask,
            bits=bits,
            min_8bit_size=min_8bit_size,
            block_wise=block_wise,
            percentile_clipping=percentile_clipping,
            paged=paged,
            options=options,
        )
    )


@factory
def lion8bit(
    learning_rate: optax.ScalarOrSchedule = 1e-4,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.99,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion with 8-bit momentum: 1.016 bytes of state per parameter instead of 4.

    See `lion` for the equations and arguments. Leaves with fewer than 4096 elements keep
    32-bit momentum.

    Examples:
      >>> tx = optax.chain(clip_by_global_norm(1.0), lion8bit(1e-4, weight_decay=0.1))
      >>> state = tx.init(jnp.zeros((64, 256)))
    """
    return lion(**locals(), bits=8)


@factory
def lion32bit(
    learning_rate: optax.ScalarOrSchedule = 1e-4,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.99,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion with float32 momentum: `optax.lion` to the last bit, with the arguments of `lion`.

    See `lion` for the equations and arguments. `min_8bit_size` and `block_wise` are checked and
    have no effect with 32 bits; they exist so that the variants are interchangeable.

    Examples:
      >>> tx = lion32bit(1e-4, weight_decay=0.1)
      >>> state = tx.init(jnp.zeros((64, 256)))
    """
    return lion(**locals(), bits=32)


@factory
def scale_by_lion(
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.99,
    *,
    bits: int | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    paged: bool = False,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of a Lion step, +1, 0 or -1, without learning rate and weight decay.

    The building block of `lion`, like `optax.scale_by_lion`. See `lion` for the arguments.

    Examples:
      >>> tx = optax.chain(scale_by_lion(bits=8), optax.scale_by_learning_rate(1e-4))
      >>> state = tx.init(jnp.zeros((64, 256)))
    """
    return make(
        Settings(
            family="lion",
            rule=LION,
            state_type=LionState,
            numbers=dict(b1=b1, b2=b2),
            bits=bits,
            min_8bit_size=min_8bit_size,
            block_wise=block_wise,
            percentile_clipping=percentile_clipping,
            paged=paged,
            options=options,
        )
    )


@factory
def paged_lion(
    learning_rate: optax.ScalarOrSchedule = 1e-4,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.99,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    bits: int | None = None,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion with its momentum in host memory (CPU offload), 32-bit or 8-bit.

    Computes the same steps as `lion`, to the last bit; see there for the equations and arguments.
    The momentum of leaves with at least `StateOptions.page_min_size` elements is kept in pinned
    host memory and streamed through the device in pages: while one page is updated, the next one is
    fetched and the previous one is written back. A large model therefore needs only about a hundred
    megabytes of device memory for its state, but all of the state crosses the link twice per step.
    See `docs/paging.md` for what that costs, and when it doesn't matter.

    Donate parameters and state to the jitted step; otherwise the host holds the state twice.

    State:
      `LionState`, whose paged leaves have the memory kind `pinned_host`: 4 bytes per parameter with
      32 bits, 1 + 4/256 with 8 bits. During a step, up to `(pages_in_flight + 1) * page_bytes` of
      device memory, 96 MiB by default, whatever the size of the model.

    Raises:
      ValueError: The platform has no pinned host memory; the optimizer is inside
        `optax.MultiSteps` (the message shows an alternative); and whatever `lion` raises.

    Examples:
      >>> tx = paged_lion(1e-4, bits=8, weight_decay=0.1)
      >>> state = tx.init({"large": jnp.zeros((1024, 256)), "small": jnp.zeros(256)})
      >>> {name: x.sharding.memory_kind for name, x in state.mu.items()}
      {'large': 'pinned_host', 'small': 'device'}
    """
    return lion(**locals(), paged=True)


@factory
def paged_lion8bit(
    learning_rate: optax.ScalarOrSchedule = 1e-4,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.99,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion with 8-bit momentum in host memory: 1.016 bytes per parameter there.

    See `lion` for the equations and arguments, and `paged_lion` for paging.

    Examples:
      >>> tx = optax.chain(clip_by_global_norm(1.0), paged_lion8bit(1e-4, weight_decay=0.1))
      >>> params = jnp.ones((1024, 256))
      >>> state = tx.init(params)
      >>> params, state = apply_fused(tx, params, jnp.ones((1024, 256)), state)
      >>> state[1].mu.sharding.memory_kind
      'pinned_host'
    """
    return lion(**locals(), bits=8, paged=True)


@factory
def paged_lion32bit(
    learning_rate: optax.ScalarOrSchedule = 1e-4,
    b1: optax.ScalarOrSchedule = 0.9,
    b2: optax.ScalarOrSchedule = 0.99,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion with float32 momentum in host memory: 4 bytes per parameter there.

    See `lion` for the equations and arguments, and `paged_lion` for paging.

    Examples:
      >>> tx = paged_lion32bit(1e-4, options=StateOptions(device_budget=2 * 2**30))
      >>> state = tx.init(jnp.zeros((1024, 256)))
      >>> state.mu.sharding.memory_kind  # there is room for it
      'device'
    """
    return lion(**locals(), bits=32, paged=True)
