"""A decoder-only transformer over bytes, in Flax NNX, and how to sample from it.

Pre-norm blocks, rotary positions, squared ReLU, no biases. At the default size everything but the
norms' scales is in matrices of 4096 elements and more, which an 8-bit optimizer stores in 8 bits.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

VOCABULARY = 256


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a `Transformer`; raises `ValueError` for sizes that do not fit together."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    seq_len: int = 64

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"`{field.name}` is {getattr(self, field.name)}; it must be at least 1."
                )
        if self.width % (2 * self.heads):
            raise ValueError(
                f"`width` {self.width} does not divide into {self.heads} heads of even size. "
                f"Use a width that is a multiple of {2 * self.heads}, such as "
                f"{2 * self.heads * max(1, round(self.width / (2 * self.heads)))}."
            )


class Attention(nnx.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.heads
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = _residual_projection(width, config, rngs)

    def __call__(self, x: jax.Array, length: int) -> jax.Array:
        """Mixes every position with those before it in its sequence; keeps the shape."""
        positions, width = x.shape
        qkv = self.qkv(x).reshape(-1, length, 3, self.heads, width // self.heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        mixed = jax.nn.dot_product_attention(_rotate(q), _rotate(k), v, is_causal=True)
        return self.out(mixed.reshape(positions, width))


class Block(nnx.Module):
    """Attention and a four times wider MLP, each behind a norm and added to its input."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, use_bias=False, rngs=rngs)
        self.down = _residual_projection(4 * width, config, rngs)

    def __call__(self, x: jax.Array, length: int) -> jax.Array:
        """Applies the block; keeps the shape."""
        x = x + self.attention(self.attention_norm(x), length)
        return x + self.down(jnp.square(nnx.relu(self.up(self.mlp_norm(x)))))


class Transformer(nnx.Module):
    """Maps bytes `[batch, length]` to next-byte logits `[batch, length, 256]`.

    In between, activations are `[batch * length, width]`: XLA's gradients of matrix products take a
    quarter less time on CPUs without a batch dimension.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCABULARY, config.width, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.head = nnx.Linear(config.width, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits for the byte after each position."""
        batch, length = tokens.shape
        x = self.embed(tokens.reshape(-1))
        for block in self.blocks:
            x = block(x, length)
        return self.head(self.norm(x)).reshape(batch, length, VOCABULARY)


@functools.partial(jax.jit, static_argnames=("graphdef", "seq_len", "count"))
def generate(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    prompt: jax.Array,
    key: jax.Array,
    *,
    seq_len: int,
    count: int,
    temperature: float = 0.7,
) -> jax.Array:
    """Continues `prompt` (bytes, `[length]`) by `count` sampled bytes; returns both, joined.

    Each byte costs one forward pass over the last `seq_len` bytes: no cache, because the demo's
    samples are short and this keeps the model free of any decoding state.
    """
    model = nnx.merge(graphdef, params)
    length = prompt.shape[0]
    text = jnp.zeros(max(length + count, seq_len), jnp.int32).at[:length].set(prompt)

    def extend(i, text):
        # The bytes after position i are still zero; causal attention keeps them out of sight.
        start = jnp.maximum(i - seq_len, 0)
        window = jax.lax.dynamic_slice(text, (start,), (seq_len,))
        logits = model(window[None])[0, i - 1 - start]
        sampled = jax.random.categorical(jax.random.fold_in(key, i), logits / temperature)
        return text.at[i].set(sampled.astype(jnp.int32))

    return jax.lax.fori_loop(length, length + count, extend, text)[: length + count]


def _residual_projection(size: int, config: TransformerConfig, rngs: nnx.Rngs) -> nnx.Linear:
    """A layer that writes to the residual stream, scaled so that depth does not blow it up."""
    scale = 1 / (2 * config.layers)
    init = nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    return nnx.Linear(size, config.width, use_bias=False, kernel_init=init, rngs=rngs)


def _rotate(x: jax.Array) -> jax.Array:
    """Rotary positions: turns pairs of features by an angle that grows with the position."""
    length, size = x.shape[1], x.shape[-1]
    frequency = 10_000.0 ** (-jnp.arange(0, size, 2) / size)
    angle = (jnp.arange(length)[:, None] * frequency)[None, :, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    even, odd = x[..., ::2], x[..., 1::2]
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return rotated.reshape(x.shape)
