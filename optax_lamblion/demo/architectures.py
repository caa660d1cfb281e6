"""Families of models, as functions from a few numbers to the shapes of the parameters.

Layouts are Flax's: kernels of dense layers are `[in, out]`, those of convolutions
`[height, width, in, out]`. What a family leaves open are the numbers of its model card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def transformer_blocks(name: str, *, layers: int, width: int) -> Shapes:
    """Blocks as GPT-2, BERT and ViT have them: biases everywhere, four times as wide inside.

    They differ in where they normalise, which changes no shape.
    """
    block = (
        layer_norm("ln_1", width)
        | dense("attn/qkv", width, 3 * width)
        | dense("attn/out", width, width)
        | layer_norm("ln_2", width)
        | dense("mlp/up", width, 4 * width)
        | dense("mlp/down", 4 * width, width)
    )
    return _repeated(name, layers, block)


def gpt2(*, layers: int, width: int) -> Shapes:
    """GPT-2, whose head is its token embedding."""
    return (
        {"wte": (50257, width), "wpe": (1024, width)}
        | transformer_blocks("h", layers=layers, width=width)
        | layer_norm("ln_f", width)
    )


def bert(*, layers: int, width: int) -> Shapes:
    """BERT with the vocabulary of its uncased checkpoints and its pooler, without other heads."""
    embeddings = {"word": (30522, width), "position": (512, width), "token_type": (2, width)}
    return (
        prefixed("embeddings", embeddings | layer_norm("ln", width))
        | transformer_blocks("layer", layers=layers, width=width)
        | dense("pooler", width, width)
    )


def vit(*, layers: int, width: int, patch: int, image: int = 224, classes: int = 1000) -> Shapes:
    """A Vision Transformer for square images, with a class token and a linear head."""
    patches = (image // patch) ** 2
    return (
        {"patches/kernel": (patch, patch, 3, width), "patches/bias": (width,)}
        | {"class_token": (1, 1, width), "positions": (1, patches + 1, width)}
        | transformer_blocks("layer", layers=layers, width=width)
        | layer_norm("ln", width)
        | dense("head", width, classes)
    )


def llama(
    *,
    layers: int,
    width: int,
    hidden: int,
    heads: int,
    key_value_heads: int,
    vocabulary: int,
    head_width: int = 128,
    own_head: bool = True,
    qkv_bias: bool = False,
    norms_after: bool = False,
    experts: int = 0,
) -> Shapes:
    """A decoder in the manner of Llama: gated MLPs, fewer heads for keys and values, no biases.

    Args:
      layers: How many blocks.
      width: Of the stream between them.
      hidden: Width inside of an MLP.
      heads: Heads of the queries.
      key_value_heads: Heads of the keys, and as many of the values.
      vocabulary: Tokens.
      head_width: Of each head.
      own_head: Whether the last matrix is another one than the embedding.
      qkv_bias: Whether queries, keys and values have biases, as in Qwen.
      norms_after: Whether there are norms after attention and MLP too, as in Gemma 2.
      experts: How many MLPs a block has, stacked along a first axis, with a router before them; 0
        is one MLP and no router, as in all but Mixtral.
    """
    queries, keys = heads * head_width, key_value_heads * head_width
    block: Shapes = {
        "attention_norm/scale": (width,),
        "attention/q": (width, queries),
        "attention/k": (width, keys),
        "attention/v": (width, keys),
        "attention/out": (queries, width),
        "mlp_norm/scale": (width,),
    }
    if qkv_bias:
        biases = {"q_bias": (queries,), "k_bias": (keys,), "v_bias": (keys,)}
        block |= prefixed("attention", biases)
    if norms_after:
        block |= {"attention_norm_after/scale": (width,), "mlp_norm_after/scale": (width,)}
    if experts:
        block["mlp/router"] = (width, experts)
    stack = (experts,) if experts else ()
    block |= {
        "mlp/gate": (*stack, width, hidden),
        "mlp/up": (*stack, width, hidden),
        "mlp/down": (*stack, hidden, width),
    }
    around = {"norm/scale": (width,)} | ({"head": (width, vocabulary)} if own_head else {})
    return {"embed": (vocabulary, width)} | _repeated("layer", layers, block) | around


def resnet(*, blocks: Sequence[int], classes: int = 1000) -> Shapes:
    """A ResNet of bottleneck blocks, so many in each stage; batch statistics are no parameters."""
    shapes = _conv_norm("stem", 7, 3, 64)
    inputs = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            layers = (
                _conv_norm("conv1", 1, inputs, width)
                | _conv_norm("conv2", 3, width, width)
                | _conv_norm("conv3", 1, width, 4 * width)
            )
            if block == 0:
                layers |= _conv_norm("shortcut", 1, inputs, 4 * width)
            shapes |= prefixed(f"stage{stage}/block{block}", layers)
            inputs = 4 * width
    return shapes | dense("head", inputs, classes)


def prefixed(prefix: str, shapes: Mapping[str, Shape]) -> Shapes:
    """The same shapes one level further down."""
    return {f"{prefix}/{name}": shape for name, shape in shapes.items()}


def dense(name: str, inputs: int, outputs: int) -> Shapes:
    """A dense layer with a bias."""
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def layer_norm(name: str, width: int) -> Shapes:
    """A norm with scale and bias."""
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}


def _conv_norm(name: str, window: int, inputs: int, outputs: int) -> Shapes:
    """A convolution without bias and the batch norm behind it."""
    kernel = {f"{name}/kernel": (window, window, inputs, outputs)}
    return kernel | layer_norm(f"{name}_norm", outputs)


def _repeated(name: str, layers: int, block: Mapping[str, Shape]) -> Shapes:
    """`name0/...`, `name1/...` and so on: equal layers."""
    return {f"{name}{i}/{key}": shape for i in range(layers) for key, shape in block.items()}
