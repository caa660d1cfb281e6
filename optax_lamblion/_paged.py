"""Lion and LAMB by name, with their state in host memory."""

from typing import Any

import optax

from optax_lamblion._lamb import lamb
from optax_lamblion._lion import lion
from optax_lamblion._options import StateOptions


def paged_lion(
    learning_rate: Any = 1e-4,
    b1: Any = 0.9,
    b2: Any = 0.99,
    weight_decay: Any = 0.0,
    mask: Any = None,
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
    return lion(
        learning_rate,
        b1,
        b2,
        weight_decay,
        mask,
        bits=bits,
        min_8bit_size=min_8bit_size,
        block_wise=block_wise,
        percentile_clipping=percentile_clipping,
        paged=True,
        options=options,
    )


def paged_lion8bit(
    learning_rate: Any = 1e-4,
    b1: Any = 0.9,
    b2: Any = 0.99,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    min_8bit_size: int | None = None,
    block_wise: bool = True,
    percentile_clipping: int | None = None,
    options: StateOptions | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion with 8-bit momentum in host memory: 1.016 bytes per parameter there.

    See `lion` for the equations and arguments, and `paged_lion` for what paging does.

    Examples:
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), paged_lion8bit(1e-4, weight_decay=0.1))
      >>> params = jnp.ones((1024, 256))
      >>> state = tx.init(params)
      >>> params, state = apply_fused(tx, params, jnp.ones((1024, 256)), state)
      >>> state[1].mu.sharding.memory_kind
      'pinned_host'
    """
    return lion(
        learning_rate,
        b1,
        b2,
        weight_decay,
        mask,
        bits=8,
        min_8bit_size=min_8bit_size,
        block_wise=block_wise,
        percentile_clipping=percentile_clipping,
        paged=True,
        options=options,
    )


def paged_lion32bit(
    learning_rate: Any = 1e-4,
    b1: Any = 0.9,
    b2: Any = 0.99,
    weight_decay: Any = 0.0,
    mask: Any = None,
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
    return lion(
        learning_rate,
        b1,
        b2,
        weight_decay,
        mask,
        bits=32,
        min_8bit_size=min_8bit_size,
        block_wise=block_wise,
        percentile_clipping=percentile_clipping,
        paged=True,
        options=options,
    )


def paged_lamb(
    learning_rate: Any = 1e-3,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    max_unorm: Any = None,
    trust_clip: tuple[Any, Any] | None = None,
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
    return lamb(
        learning_rate,
        b1,
        b2,
        eps,
        weight_decay,
        mask,
        bias_correction=bias_correction,
        amsgrad=amsgrad,
        adam_w_mode=adam_w_mode,
        max_unorm=max_unorm,
        trust_clip=trust_clip,
        bits=bits,
        min_8bit_size=min_8bit_size,
        block_wise=block_wise,
        percentile_clipping=percentile_clipping,
        paged=True,
        options=options,
    )


def paged_lamb8bit(
    learning_rate: Any = 1e-3,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    max_unorm: Any = None,
    trust_clip: tuple[Any, Any] | None = None,
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
    return lamb(
        learning_rate,
        b1,
        b2,
        eps,
        weight_decay,
        mask,
        bias_correction=bias_correction,
        amsgrad=amsgrad,
        adam_w_mode=adam_w_mode,
        max_unorm=max_unorm,
        trust_clip=trust_clip,
        bits=8,
        min_8bit_size=min_8bit_size,
        block_wise=block_wise,
        percentile_clipping=percentile_clipping,
        paged=True,
        options=options,
    )


def paged_lamb32bit(
    learning_rate: Any = 1e-3,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
    *,
    bias_correction: bool = True,
    amsgrad: bool = False,
    adam_w_mode: bool = True,
    max_unorm: Any = None,
    trust_clip: tuple[Any, Any] | None = None,
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
    return lamb(
        learning_rate,
        b1,
        b2,
        eps,
        weight_decay,
        mask,
        bias_correction=bias_correction,
        amsgrad=amsgrad,
        adam_w_mode=adam_w_mode,
        max_unorm=max_unorm,
        trust_clip=trust_clip,
        bits=32,
        min_8bit_size=min_8bit_size,
        block_wise=block_wise,
        percentile_clipping=percentile_clipping,
        paged=True,
        options=options,
    )
