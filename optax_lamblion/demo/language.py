"""The text task: a byte-level transformer that predicts the next byte of a corpus."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from optax_lamblion.demo import text
from optax_lamblion.demo.task import Task
from optax_lamblion.demo.transformer import Transformer, TransformerConfig, generate

_HELD_OUT_WINDOWS = 128
_SAMPLE_BYTES = 240


def text_task(
    corpus: text.Corpus,
    config: TransformerConfig,
    *,
    batch_size: int = 16,
    seed: int = 0,
    prompt: str | None = None,
) -> Task:
    """A transformer on `corpus`; `prompt` starts its samples, by default with held-out text."""
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1.")
    text.check_length(corpus, config.seq_len)
    prompt_bytes = _prompt_bytes(corpus, prompt)
    graphdef, params = nnx.split(Transformer(config, rngs=nnx.Rngs(seed)), nnx.Param)
    held_out = corpus.held_out_windows(_HELD_OUT_WINDOWS, config.seq_len)
    unigram = corpus.unigram_loss(held_out)

    def loss(params, windows):
        logits = nnx.merge(graphdef, params)(windows[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
        return losses.mean()

    held_out_loss = jax.jit(loss)

    def evaluate(params):
        return _metrics(float(held_out_loss(params, held_out)))

    def sample(params):
        prompt, key = jnp.asarray(prompt_bytes, jnp.int32), jax.random.key(seed)
        sizes = dict(seq_len=config.seq_len, count=_SAMPLE_BYTES)
        joined = np.asarray(generate(graphdef, params, prompt, key, **sizes), np.uint8)
        start, rest = np.split(joined, [prompt_bytes.size])
        return _decode(start), _decode(rest)

    return Task(
        name="text",
        title=f"Byte-level transformer on {corpus.source}",
        params=params,
        loss=loss,
        batch=lambda step: corpus.train_windows(seed, step, batch_size, config.seq_len),
        evaluate=evaluate,
        baseline_name="byte frequencies",
        baseline=_metrics(unigram),
        sample=sample,
    )


def _metrics(loss: float) -> dict[str, float]:
    return {"loss": loss, "bits_per_byte": text.bits_per_byte(loss)}


def _prompt_bytes(corpus: text.Corpus, prompt: str | None) -> np.ndarray:
    if prompt == "":
        raise ValueError("The prompt is empty; a sample needs at least one byte to start from.")
    if prompt is None:
        return corpus.held_out[:16]
    return np.frombuffer(prompt.encode(), np.uint8)


def _decode(content: np.ndarray) -> str:
    """Bytes as text that is safe to print: a half-trained model may emit control characters."""
    decoded = content.tobytes().decode("utf-8", errors="replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in decoded)
