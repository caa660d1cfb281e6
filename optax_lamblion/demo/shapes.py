"""Parameter shapes of well-known models, to ask what an optimizer's state would cost for them.

Shapes only: nothing here is ever allocated. The numbers are those of the published configurations,
and the parameters that come of them those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from optax_lamblion.demo import architectures
from optax_lamblion.demo.architectures import Shape, Shapes


def gpt2_124m() -> Shapes:
    """GPT-2, the smallest: 124,439,808 parameters."""
    return architectures.gpt2(layers=12, width=768)


def gpt2_xl() -> Shapes:
    """GPT-2, the largest: 1,557,611,200 parameters. Its width is no multiple of 256."""
    return architectures.gpt2(layers=48, width=1600)


def bert_large() -> Shapes:
    """BERT-large, uncased: 335,141,888 parameters. What LAMB was made for."""
    return architectures.bert(layers=24, width=1024)


def vit_b_16() -> Shapes:
    """ViT-B/16 for ImageNet: 86,567,656 parameters."""
    return architectures.vit(layers=12, width=768, patch=16)


def vit_l_16() -> Shapes:
    """ViT-L/16 for ImageNet: 304,326,632 parameters."""
    return architectures.vit(layers=24, width=1024, patch=16)


def resnet50() -> Shapes:
    """ResNet-50 for ImageNet: 25,557,032 parameters."""
    return architectures.resnet(blocks=(3, 4, 6, 3))


def llama_3_2_1b() -> Shapes:
    """Llama 3.2 1B: 1,235,814,400 parameters. Its head is its embedding."""
    return architectures.llama(
        layers=16,
        width=2048,
        hidden=8192,
        heads=32,
        key_value_heads=8,
        vocabulary=128256,
        head_width=64,
        own_head=False,
    )


def llama_8b() -> Shapes:
    """Llama 3 8B, and 3.1: 8,030,261,248 parameters."""
    return architectures.llama(
        layers=32, width=4096, hidden=14336, heads=32, key_value_heads=8, vocabulary=128256
    )


def llama_70b() -> Shapes:
    """Llama 3 70B, 3.1 and 3.3: 70,553,706,496 parameters."""
    return architectures.llama(
        layers=80, width=8192, hidden=28672, heads=64, key_value_heads=8, vocabulary=128256
    )


def gemma_2_2b() -> Shapes:
    """Gemma 2 2B: 2,614,341,888 parameters, a fifth of them in its embedding, which is its head."""
    return architectures.llama(
        layers=26,
        width=2304,
        hidden=9216,
        heads=8,
        key_value_heads=4,
        vocabulary=256000,
        head_width=256,
        own_head=False,
        norms_after=True,
    )


def gemma_2_9b() -> Shapes:
    """Gemma 2 9B: 9,241,705,984 parameters. Its head is its embedding."""
    return architectures.llama(
        layers=42,
        width=3584,
        hidden=14336,
        heads=16,
        key_value_heads=8,
        vocabulary=256000,
        head_width=256,
        own_head=False,
        norms_after=True,
    )


def mistral_7b() -> Shapes:
    """Mistral 7B v0.1: 7,241,732,096 parameters."""
    return architectures.llama(
        layers=32, width=4096, hidden=14336, heads=32, key_value_heads=8, vocabulary=32000
    )


def mixtral_8x7b() -> Shapes:
    """Mixtral 8x7B: 46,702,792,704 parameters. All experts are trained."""
    return architectures.llama(
        layers=32,
        width=4096,
        hidden=14336,
        heads=32,
        key_value_heads=8,
        vocabulary=32000,
        experts=8,
    )


def qwen_2_5_7b() -> Shapes:
    """Qwen2.5 7B: 7,615,616,512 parameters, with biases of queries, keys and values."""
    return architectures.llama(
        layers=28,
        width=3584,
        hidden=18944,
        heads=28,
        key_value_heads=4,
        vocabulary=152064,
        qkv_bias=True,
    )


MODELS: Mapping[str, Callable[[], Shapes]] = MappingProxyType(
    {
        "gpt2-124m": gpt2_124m,
        "gpt2-xl": gpt2_xl,
        "bert-large": bert_large,
        "vit-b-16": vit_b_16,
        "vit-l-16": vit_l_16,
        "resnet50": resnet50,
        "llama-3.2-1b": llama_3_2_1b,
        "llama-8b": llama_8b,
        "llama-70b": llama_70b,
        "gemma-2-2b": gemma_2_2b,
        "gemma-2-9b": gemma_2_9b,
        "mistral-7b": mistral_7b,
        "mixtral-8x7b": mixtral_8x7b,
        "qwen-2.5-7b": qwen_2_5_7b,
    }
)


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
