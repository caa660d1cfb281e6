"""State: what an optimizer remembers, and in which precision.

The state is a NamedTuple of trees shaped like the parameters, which is what Optax's tree functions,
Orbax and Flax all understand. Whether a leaf is stored in 8 or 32 bits is decided here, once, at
`init`; from then on its dtype says so.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_lamblion._clipping import HISTORY
from optax_lamblion._trees import path_string
from pallas_kernels.blocks import BLOCK_SIZES, absmax_shape
from pallas_kernels.dtypes import compute_dtype


class LionState(NamedTuple):
    """The state of a Lion optimizer. Trees are shaped like the parameters.

    - `count`: int32 scalar, the steps taken.
    - `mu`: the momentum: uint8 codes in the parameter's shape, or float32.
    - `mu_absmax`: float32 scales of the codes, one per block (see `pallas_kernels.quantize`); for a
      float32 leaf one unused zero. None if no leaf can be 8-bit.
    - `gnorm_history`: the last 100 squared gradient norms per leaf, float32, or None without
      percentile clipping.
    """

    count: Any
    mu: Any
    mu_absmax: Any = None
    gnorm_history: Any = None


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


def init_state(state_type, codecs, params, *, bits, block_size, min_8bit_size, options, clipping):
    """Fresh state: zero moments, in the precision of each leaf.

    Args:
      state_type: `LionState` or `LambState`.
      codecs: Codec of every slot by its name.
      params: Parameters, or their shapes and dtypes.
      bits: 8 or 32.
      block_size: Elements per block, or None for one block per leaf.
      min_8bit_size: Leaves with fewer elements are 32-bit.
      options: `StateOptions`.
      clipping: Whether gradient norms are remembered.
    """
    jax.tree_util.tree_map_with_path(_check_param, params)
    keep = options.keeps_32bit(params)

    def coded(p, keep):
        return bits == 8 and not keep and math.prod(p.shape) >= max(min_8bit_size, 1)

    def slot(codec):
        def init(p, keep):
            if coded(p, keep):
                return jnp.full_like(p, codec.zero_code, dtype=jnp.uint8)
            return jnp.zeros_like(p, dtype=compute_dtype(p.dtype))

        return jax.tree.map(init, params, keep)

    def absmax(p, keep):
        # One zero where there are no blocks: a tree needs its leaves to stay shaped like the
        # parameters, and Orbax refuses arrays of size zero.
        shape = absmax_shape(p.shape, block_size) if coded(p, keep) else (1,) * len(p.shape)
        return jnp.zeros(shape, jnp.float32)

    fields: dict[str, Any] = {"count": jnp.zeros([], jnp.int32)}
    for name, codec in codecs.items():
        fields[name] = slot(codec)
        if bits == 8:
            fields[f"{name}_absmax"] = jax.tree.map(absmax, params, keep)
    if clipping:
        fields["gnorm_history"] = jax.tree.map(lambda _: jnp.zeros([HISTORY], jnp.float32), params)
    return state_type(**fields)


def _check_param(path, p):
    if not hasattr(p, "dtype"):
        raise TypeError(
            f"Parameter {path_string(path)!r} is a {type(p).__name__}; optimizers here need "
            "arrays. Make it one with `jnp.asarray`."
        )
    if not jnp.issubdtype(p.dtype, jnp.floating):
        raise TypeError(
            f"Parameter {path_string(path)!r} has dtype {p.dtype}; optimizers here need "
            "floating-point parameters. Leave it out with `optax.masked` or `optax.partition`."
        )


def check_leaf(name, g, slots, absmaxes, block_size):
    """Raises `ValueError` where a gradient and its state do not belong together."""
    for field, x, absmax in zip(*slots, absmaxes, strict=True):
        if x.shape != g.shape:
            raise ValueError(
                f"State leaf {field}[{name!r}] has shape {x.shape}, but the gradient has "
                f"{g.shape}. Make a new state with `tx.init(params)`."
            )
        if x.dtype != jnp.uint8:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"State leaf {field}[{name!r}] has dtype {x.dtype}; it should be uint8 codes "
                    "or floating point. Make a new state with `tx.init(params)`."
                )
            continue
        expected = absmax_shape(x.shape, block_size)
        if absmax is None or absmax.shape != expected:
            raise ValueError(_wrong_blocks(f"{field}[{name!r}]", x, absmax, block_size, expected))


def _wrong_blocks(leaf, x, absmax, block_size, expected):
    uses = "one block per tensor (`block_wise=False`)" if block_size is None else block_size
    if absmax is None:
        return (
            f"State leaf {leaf} holds 8-bit codes without scales: it is from an 8-bit optimizer, "
            "and this one is 32-bit. Build this one with `bits=8`."
        )
    fits = [b for b in (*BLOCK_SIZES, None) if absmax_shape(x.shape, b) == absmax.shape]
    if not fits:
        return (
            f"State leaf {leaf} has scales of shape {absmax.shape}, which fits no block size; this "
            f"optimizer needs {expected}. Make a new state with `tx.init(params)`."
        )
    # A tensor no larger than a block looks the same with several block sizes.
    has = " or ".join("one block per tensor" if b is None else f"block size {b}" for b in fits)
    remedy = " or ".join(
        "`block_wise=False`" if b is None else f"`options=StateOptions(block_size={b})`"
        for b in fits
    )
    return f"State leaf {leaf} has {has}, but this optimizer uses {uses}. Build it with {remedy}."
