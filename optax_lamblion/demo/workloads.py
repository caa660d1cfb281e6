"""Lists of shapes to time optimizer steps on: the tensors of models, and what is hard for a step.

A whole model of billions of parameters would fit nowhere, so of the largest there is one layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from optax_lamblion.demo import shapes
from optax_lamblion.demo.architectures import Shapes


def leaf(log2: int) -> Shapes:
    """One matrix of `2**log2` elements, square or twice as wide as it is high."""
    return {"leaf": (2 ** (log2 // 2), 2 ** (log2 - log2 // 2))}


def tiny_leaves(count: int) -> Shapes:
    """Vectors of 64 to 512 elements, such as biases and scales, whose state stays in float32."""
    return {f"leaf{i:04}": (64 << i % 4,) for i in range(count)}


def layer_of(model: str, prefix: str) -> Shapes:
    """The parameters of a model whose names begin so."""
    return {
        name: shape for name, shape in shapes.MODELS[model]().items() if name.startswith(prefix)
    }


def lora(model: str, rank: int, targets: tuple[str, ...]) -> Shapes:
    """Adapters of a low rank beside the matrices whose names end with one of the targets.

    All of a model's layers have them: a matrix `[in, rank]`, and one `[rank, out]`.
    """
    adapters: Shapes = {}
    for name, (inputs, *outputs) in shapes.MODELS[model]().items():
        if name.endswith(targets):
            adapters |= {f"{name}/a": (inputs, rank), f"{name}/b": (rank, *outputs)}
    return adapters


_QUERIES_AND_VALUES = ("attention/q", "attention/v")
_ALL = (*_QUERIES_AND_VALUES, "attention/k", "attention/out", "mlp/gate", "mlp/up", "mlp/down")

WORKLOADS: Mapping[str, Callable[[], Shapes]] = MappingProxyType(
    {
        "leaf-16m": functools.partial(leaf, 24),
        "gpt2-124m": shapes.MODELS["gpt2-124m"],
        "llama-8b-layer": functools.partial(layer_of, "llama-8b", "layer0/"),
        "resnet50": shapes.MODELS["resnet50"],
        "lora-r8": functools.partial(lora, "llama-2-7b", 8, _QUERIES_AND_VALUES),
        "lora-r16": functools.partial(lora, "llama-2-7b", 16, _ALL),
        "tiny-1000": functools.partial(tiny_leaves, 1000),
    }
)
"""What makes the shapes of a list, by its name."""
