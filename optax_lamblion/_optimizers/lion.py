"""Lion by name, with its momentum in 32 or 8 bits."""

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
    r"""Lion, with its momentum in 32 or 8 bits.

    Takes the sign of a mix of momentum and gradient, so every element moves by the learning rate.
    It keeps one slot per parameter, half of Adam's. Coming from AdamW, divide the learning rate by
    3 to 10 and multiply the weight decay by as much.

    .. math::
      u_t = \operatorname{sign}(b_1 m_{t-1} + (1 - b_1) g_t), \qquad
      m_t = b_2 m_{t-1} + (1 - b_2) g_t, \qquad
      \Delta\theta = -\eta\,(u_t + \lambda\theta)

    A gradient element that is not finite leaves its parameter and its momentum as they were.

    Args:
      learning_rate: :math:`\eta`, a number or a schedule.
      b1: :math:`b_1`, the weight of the momentum when it is mixed with the gradient; a number in
        [0, 1) or a schedule.
      b2: :math:`b_2`, the decay of the momentum; a number in [0, 1) or a schedule.
      weight_decay: :math:`\lambda`, decoupled; a number or a schedule. Not zero, it needs `params`
        in `update`.
      mask: Which leaves decay: a tree of bools like the parameters or a prefix of it, or a function
        that makes one from the parameters. None decays all. Under `optax.inject_hyperparams` name
        it in `static_args`, which else takes a function for a schedule.
      bits: 8 stores the momentum in 8 bits, 32 or None in 32.
      min_8bit_size: With 8 bits, leaves with fewer elements stay in 32; None means the 4096 of
        `StateOptions`.
      block_wise: With 8 bits, False gives a leaf one scale in all instead of one per 256 elements.
      percentile_clipping: Scales a leaf's gradient to this percentile of its last 100 norms, an int
        from 0 to 98 (99 is the largest of them, and clips nothing); None and 100 are off. See
        `clip_by_percentile`.
      paged: True keeps the state of large leaves in host memory and streams it through the device
        in every step; see `paged_lion`.
      options: The rarer choices about state; see `StateOptions`.

    Returns:
      An `optax.GradientTransformationExtraArgs`. Updates have the dtype that parameters and
      gradients promote to; arithmetic is in float32 (float64 for float64 leaves).

    State:
      `LionState`. 4 bytes per parameter in 32 bits; 1 + 4/256 in 8. 400 bytes per leaf more with
      `percentile_clipping`.

    Raises:
      TypeError: An argument is of the wrong kind; a parameter or gradient is not floating point.
      ValueError: An argument is out of range; `update` lacks `params`; a state does not fit.

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

    See `lion` for the equations and arguments. A leaf of fewer than 4096 elements keeps its
    momentum in 32 bits.

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
    have nothing to act on in 32 bits; they are here so that variants can be exchanged.

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
    """Lion with its momentum in host memory, in 32 or 8 bits.

    Takes the steps of `lion`, to the last bit; see there for the equations and arguments. The
    momentum of leaves with `StateOptions.page_min_size` elements or more sleeps in pinned host
    memory. In a step it passes through the device in pages: while one is stepped, the next is
    fetched and the last one stored. So a large model needs a hundred megabytes on the device for
    its state, and every step waits for the link: all the state goes in and out of the device once.
    What that costs, and how large a step has to be for it not to matter, is in `docs/paging.md`.

    Donate parameters and state to the function around `update`, or the host holds them twice.

    State:
      `LionState`, of which leaves that are paged have the memory kind `pinned_host`: 4 bytes per
      parameter in 32 bits, 1 + 4/256 in 8. In a step, up to `(pages_in_flight + 1) * page_bytes`
      of the device's memory, 96 MiB by default, whatever the size of the model.

    Raises:
      ValueError: The platform has no pinned host memory; the optimizer is inside
        `optax.MultiSteps`, for which the message has a substitute; and what `lion` raises.

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

    See `lion` for the equations and arguments, and `paged_lion` for what paging does.

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

    See `lion` for the equations and arguments, and `paged_lion` for what paging does.

    Examples:
      >>> tx = paged_lion32bit(1e-4, options=StateOptions(device_budget=2 * 2**30))
      >>> state = tx.init(jnp.zeros((1024, 256)))
      >>> state.mu.sharding.memory_kind  # there is room for it
      'device'
    """
    return lion(**locals(), bits=32, paged=True)
