"""Parameter shapes of well-known models, to ask what an optimizer's state would cost for them.

Shapes only: nothing here is ever allocated. A model is the config that was published with it, as
far as it decides a shape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from optax_lamblion.demo import architectures, configs
from optax_lamblion.demo.architectures import Shape, Shapes


def _gpt2(layers: int, width: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_layer": layers, "n_embd": width, "vocab_size": 50257}


def _encoder(kind: str, layers: int, width: int, **more: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        **more,
    }


def _decoder(
    kind: str, *, layers: int, width: int, hidden: int, heads: tuple[int, int], words: int, **more
) -> dict[str, Any]:
    """`heads` are those of the queries, and those of keys and values."""
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": words,
        **more,
    }


# fmt: off
CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "gpt2-124m": _gpt2(12, 768),
    "gpt2-xl": _gpt2(48, 1600),  # whose width is no multiple of 256
    "bert-base": _encoder("bert", 12, 768, vocab_size=30522),
    "bert-large": _encoder("bert", 24, 1024, vocab_size=30522),  # what LAMB was made for
    "t5-base": {"model_type": "t5", "num_layers": 12, "d_model": 768, "d_ff": 3072,
                "num_heads": 12, "vocab_size": 32128},
    "vit-b-16": _encoder("vit", 12, 768, num_labels=1000),
    "vit-l-16": _encoder("vit", 24, 1024, num_labels=1000),
    "llama-2-7b": _decoder(
        "llama", layers=32, width=4096, hidden=11008, heads=(32, 32), words=32000),
    "llama-3.2-1b": _decoder(
        "llama", layers=16, width=2048, hidden=8192, heads=(32, 8), words=128256,
        tie_word_embeddings=True),
    "llama-8b": _decoder(
        "llama", layers=32, width=4096, hidden=14336, heads=(32, 8), words=128256),
    "llama-70b": _decoder(
        "llama", layers=80, width=8192, hidden=28672, heads=(64, 8), words=128256),
    "gemma-2-2b": _decoder(
        "gemma2", layers=26, width=2304, hidden=9216, heads=(8, 4), words=256000),
    "gemma-2-9b": _decoder(
        "gemma2", layers=42, width=3584, hidden=14336, heads=(16, 8), words=256000),
    "gemma-3-1b": _decoder(
        "gemma3_text", layers=26, width=1152, hidden=6912, heads=(4, 1), words=262144),
    "mistral-7b": _decoder(
        "mistral", layers=32, width=4096, hidden=14336, heads=(32, 8), words=32000),
    "mixtral-8x7b": _decoder(  # all experts are trained
        "mixtral", layers=32, width=4096, hidden=14336, heads=(32, 8), words=32000),
    "phi-3-mini": _decoder(
        "phi3", layers=32, width=3072, hidden=8192, heads=(32, 32), words=32064),
    "qwen-2.5-7b": _decoder(
        "qwen2", layers=28, width=3584, hidden=18944, heads=(28, 4), words=152064),
    "qwen-3-8b": _decoder(
        "qwen3", layers=36, width=4096, hidden=12288, heads=(32, 8), words=151936),
})
# fmt: on


def _shapes_of(name: str) -> Shapes:
    return configs.model(CONFIGS[name]).shapes


MODELS: Mapping[str, Callable[[], Shapes]] = MappingProxyType(
    {name: functools.partial(_shapes_of, name) for name in CONFIGS}
    | {"resnet50": functools.partial(architectures.resnet, blocks=(3, 4, 6, 3))}
)
"""What makes the shapes of a model, by its name."""


def anonymous_model(parameters: int) -> Shapes:
    """Shapes with exactly `parameters` elements: large matrices, and one vector for the rest.

    The rest has fewer than 4096 elements, so it stays 32-bit, as the norms of a real model do.
    """
    width, most = 4096, 64
    rows, rest = divmod(parameters, width)
    matrices = min(rows, most)
    shapes: Shapes = {}
    for i in range(matrices):
        shapes[f"matrix{i}"] = (rows // matrices + (i < rows % matrices), width)
    if rest:
        shapes["rest"] = (rest,)
    return shapes


def count(shapes: Mapping[str, Shape]) -> int:
    """How many parameters there are."""
    return sum(map(math.prod, shapes.values()))


def as_structs(shapes: Mapping[str, Shape], dtype=jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes as JAX's placeholders for arrays, which `jax.eval_shape` takes in their place."""
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
