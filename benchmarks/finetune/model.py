"""BERT's encoder, as far as a sentence's meaning needs it, on weights under their published names.

`params` maps names such as `encoder.layer.0.output.dense.weight` to arrays. Matrices are
`[out, in]`, as PyTorch keeps them. There is no dropout.
"""

import jax
import jax.numpy as jnp

EPS = 1e-12
"""What layer normalization adds to a variance."""


def sentence_means(params, tokens, mask, heads):
    """The mean of a sentence's last hidden states: `[batch, width]`.

    Args:
      params: Weights by name.
      tokens: `[batch, length]` numbers of tokens.
      mask: The same shape: 1 for a token, 0 for padding.
      heads: The number of attention heads.
    """
    x = hidden_states(params, tokens, mask, heads)
    counted = mask[..., None].astype(x.dtype)
    return (x * counted).sum(1) / counted.sum(1)


def hidden_states(params, tokens, mask, heads):
    """The last hidden states: `[batch, length, width]`."""
    words, places, kinds = (
        params[f"embeddings.{name}_embeddings.weight"]
        for name in ("word", "position", "token_type")
    )
    # Of the two kinds of token, a sentence of its own has the first.
    x = words[tokens] + places[None, : tokens.shape[1]] + kinds[None, :1]
    x = _norm(params, "embeddings.LayerNorm", x)
    for i in range(layers(params)):
        x = _layer(params, f"encoder.layer.{i}", x, mask, heads)
    return x


def layers(params):
    """How many layers the weights have."""
    return 1 + max(int(name.split(".")[2]) for name in params if name.startswith("encoder.layer."))


def _layer(params, name, x, mask, heads):
    attended = _dense(
        params, f"{name}.attention.output.dense", _attend(params, name, x, mask, heads)
    )
    x = _norm(params, f"{name}.attention.output.LayerNorm", x + attended)
    inner = jax.nn.gelu(_dense(params, f"{name}.intermediate.dense", x), approximate=False)
    return _norm(
        params, f"{name}.output.LayerNorm", x + _dense(params, f"{name}.output.dense", inner)
    )


def _attend(params, name, x, mask, heads):
    batch, length, width = x.shape
    queries, keys, values = (
        _dense(params, f"{name}.attention.self.{part}", x).reshape(batch, length, heads, -1)
        for part in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys) / (width // heads) ** 0.5
    scores = jnp.where(mask[:, None, None, :] > 0, scores, -jnp.inf)
    found = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), values)
    return found.reshape(batch, length, width)


def _dense(params, name, x):
    bias = params[f"{name}.bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    return x @ params[f"{name}.weight"].T + bias


def _norm(params, name, x):
    scale, shift = (params[f"{name}.{part}"].reshape(1, 1, -1) for part in ("weight", "bias"))
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPS) * scale + shift
