"""Parameter shapes of well-known models, to ask what an optimizer's state would cost for them.

Shapes only: nothing here is ever allocated. Layouts are Flax's (dense kernels `[in, out]`,
convolutions `[height, width, in, out]`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

Shape = tuple[int, ...]


def gpt2_124m() -> dict[str, Shape]:
    """GPT-2, the smallest: 124,439,808 parameters. Its head is its token embedding."""
    width, layers = 768, 12
    shapes: dict[str, Shape] = {"wte": (50257, width), "wpe": (1024, width)}
    for i in range(layers):
        shapes |= _prefixed(
            f"h{i}",
            _layer_norm("ln_1", width)
            | _dense("attn/qkv", width, 3 * width)
            | _dense("attn/out", width, width)
            | _layer_norm("ln_2", width)
            | _dense("mlp/up", width, 4 * width)
            | _dense("mlp/down", 4 * width, width),
        )
    return shapes | _layer_norm("ln_f", width)


def llama_8b() -> dict[str, Shape]:
    """Llama 3 8B: 8,030,261,248 parameters, with grouped-query attention and a head of its own."""
    width, hidden, layers, key_value, vocabulary = 4096, 14336, 32, 1024, 128256
    shapes: dict[str, Shape] = {"embed": (vocabulary, width)}
    for i in range(layers):
        shapes |= _prefixed(
            f"layer{i}",
            {
                "attention_norm/scale": (width,),
                "attention/q": (width, width),
                "attention/k": (width, key_value),
                "attention/v": (width, key_value),
                "attention/out": (width, width),
                "mlp_norm/scale": (width,),
                "mlp/gate": (width, hidden),
                "mlp/up": (width, hidden),
                "mlp/down": (hidden, width),
            },
        )
    return shapes | {"norm/scale": (width,), "head": (width, vocabulary)}


def resnet50() -> dict[str, Shape]:
    """ResNet-50 for ImageNet: 25,557,032 parameters (batch statistics are not parameters)."""
    shapes = _conv_norm("stem", 7, 3, 64)
    inputs = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            layers = (
                _conv_norm("conv1", 1, inputs, width)
                | _conv_norm("conv2", 3, width, width)
                | _conv_norm("conv3", 1, width, 4 * width)
            )
            if block == 0:
                layers |= _conv_norm("shortcut", 1, inputs, 4 * width)
            shapes |= _prefixed(f"stage{stage}/block{block}", layers)
            inputs = 4 * width
    return shapes | _dense("head", inputs, 1000)


MODELS: Mapping[str, Callable[[], dict[str, Shape]]] = MappingProxyType(
    {"gpt2-124m": gpt2_124m, "llama-8b": llama_8b, "resnet50": resnet50}
)


def anonymous_model(parameters: int) -> dict[str, Shape]:
    """Shapes with exactly `parameters` elements: large matrices, and one vector for the rest.

    The rest has fewer than 4096 elements, so it stays 32-bit, as the norms of a real model do.
    """
    width, most = 4096, 64
    rows, rest = divmod(parameters, width)
    matrices = min(rows, most)
    shapes: dict[str, Shape] = {}
    for i in range(matrices):
        shapes[f"matrix{i}"] = (rows // matrices + (i < rows % matrices), width)
    if rest:
        shapes["rest"] = (rest,)
    return shapes


def as_structs(shapes: Mapping[str, Shape], dtype=jnp.float32) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes as JAX's placeholders for arrays, which `jax.eval_shape` takes in their place."""
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}


def _prefixed(prefix: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {f"{prefix}/{name}": shape for name, shape in shapes.items()}


def _dense(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def _layer_norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}


def _conv_norm(name: str, window: int, inputs: int, outputs: int) -> dict[str, Shape]:
    """A convolution without bias and the batch norm behind it."""
    return {f"{name}/kernel": (window, window, inputs, outputs)} | _layer_norm(
        f"{name}_norm", outputs
    )
