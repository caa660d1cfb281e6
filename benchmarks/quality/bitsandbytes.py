"""bitsandbytes' 8-bit state in JAX: its map, its rounding to nearest, and steps with both.

By the documented arithmetic of its CUDA kernels, which its CPU build does not follow. Tests compare
it with `tests/interop/cuda_steps.py`. What is kept between steps is what codes and scales would be
read back as, which is the same thing.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


@functools.cache
def code_map(signed):
    """The values of the 256 codes, rising, float32: seven decades of evenly spaced levels."""
    values = [0.0, 1.0]  # signed, there is no -1
    for decade in range(7):
        count = 2**decade if signed else 2 ** (decade + 1)
        level = 10.0 ** (decade - 6) * (0.1 + 0.9 * (np.arange(count) + 0.5) / count)
        values += [*level, *(-level if signed else ())]
    return np.sort(np.float32(values))


def quantize(x, block_size, signed):
    """`(codes, absmax)` of an array in blocks of consecutive elements, `[blocks, block_size]`."""
    blocks = -(-x.size // block_size)
    rows = jnp.pad(x.reshape(-1), (0, blocks * block_size - x.size)).reshape(blocks, block_size)
    absmax = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    y = rows / jnp.where(absmax > 0, absmax, 1)
    table = code_map(signed)
    codes = _nearest(y, signed)
    if signed:
        # Zero counts as positive: a negative value is never stored as zero.
        other = jnp.signbit(jnp.asarray(table)[codes]) != jnp.signbit(y)
        codes = jnp.where(other, jnp.where(y > 0, codes + 1, codes - 1), codes)
    return codes, absmax


def _middles(signed):
    """Where the nearest code changes; a value that is as near to two has the lower one."""
    table = code_map(signed)
    return np.float32((table[1:] + table[:-1]) / 2)


@functools.cache
def _first_codes(signed):
    """For the upper 16 bits of float32 numbers, the code of the least number that has them."""
    bits = np.arange(2**16, dtype=np.uint32) << 16
    least = np.where(bits < 2**31, bits, bits | 0xFFFF).view(np.float32)
    return np.searchsorted(_middles(signed), np.nan_to_num(least)).astype(np.int32)


def _nearest(y, signed):
    """The codes of the nearest levels, for `y` from -1 to 1: `searchsorted` among the middles.

    Numbers with the same upper 16 bits are less than 2**-7 apart, relatively, so there is at most
    one middle among them: two look-ups instead of the eight of a search.
    """
    first = jnp.asarray(_first_codes(signed))[y.view(jnp.uint32) >> 16]
    middles = jnp.asarray(np.append(_middles(signed), np.inf).astype(np.float32))
    return first + (y > middles[first]).astype(jnp.int32)


def stored(x, block_size, signed):
    """What is read back of `x`."""
    codes, absmax = quantize(x, block_size, signed)
    return (jnp.asarray(code_map(signed))[codes] * absmax).reshape(-1)[: x.size].reshape(x.shape)


class State(NamedTuple):
    """The moments as they would be read back; Lion has no `nu`."""

    count: jax.Array
    mu: Any
    nu: Any = None


def scale_by_lion(b1=0.9, b2=0.99, *, block_size=256, min_8bit_size=4096):
    """The direction of `Lion8bit`."""
    keep = functools.partial(_keep, block_size=block_size, least=min_8bit_size, signed=True)

    def init(params):
        return State(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        mixed = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, updates, state.mu)
        mu = jax.tree.map(lambda g, m: keep(b2 * m + (1 - b2) * g), updates, state.mu)
        return jax.tree.map(jnp.sign, mixed), State(state.count + 1, mu)

    return optax.GradientTransformation(init, update)


def scale_by_adam(b1=0.9, b2=0.999, eps=1e-8, *, block_size=256, min_8bit_size=4096):
    """The direction of `AdamW8bit`, and of `LAMB8bit` where it runs: of moments before rounding."""
    keep = functools.partial(_keep, block_size=block_size, least=min_8bit_size)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return State(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, updates, state.mu)
        nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g * g, updates, state.nu)
        c1, c2 = 1 - b1**count, 1 - b2**count
        out = jax.tree.map(lambda m, v: (m / c1) / (jnp.sqrt(v / c2) + eps), mu, nu)
        mu = jax.tree.map(functools.partial(keep, signed=True), mu)
        nu = jax.tree.map(functools.partial(keep, signed=False), nu)
        return out, State(count, mu, nu)

    return optax.GradientTransformation(init, update)


def scale_by_lamb(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, **kwargs):
    """LAMB as in the paper, with moments that are stored as bitsandbytes stores them."""
    return optax.chain(
        scale_by_adam(b1, b2, eps, **kwargs),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_trust_ratio(),
    )


def _keep(x, block_size, least, signed):
    return stored(x, block_size, signed) if x.size >= least else x
