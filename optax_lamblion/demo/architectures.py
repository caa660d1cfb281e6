"""Families of models, as functions from a few numbers to the shapes of the parameters.

Layouts are Flax's: kernels of dense layers are `[in, out]`, those of convolutions
`[height, width, in, out]`. What a family leaves open are the numbers of its model card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def transformer_blocks(name: str, *, layers: int, width: int, hidden: int) -> Shapes:
    """Blocks as GPT-2, GPT-NeoX, BERT and ViT have them: plain MLPs, and biases everywhere.

    They differ in where they normalise, which changes no shape.
    """
    block = (
        layer_norm("ln_1", width)
        | dense("attn/qkv", width, 3 * width)
        | dense("attn/out", width, width)
        | layer_norm("ln_2", width)
        | dense("mlp/up", width, hidden)
        | dense("mlp/down", hidden, width)
    )
    return _repeated(name, layers, block)


def gpt2(*, layers: int, width: int, hidden: int, vocabulary: int, positions: int) -> Shapes:
    """GPT-2 with learned positions, whose head is its token embedding."""
    return (
        {"wte": (vocabulary, width), "wpe": (positions, width)}
        | transformer_blocks("h", layers=layers, width=width, hidden=hidden)
        | layer_norm("ln_f", width)
    )


def gpt_neox(
    *, layers: int, width: int, hidden: int, vocabulary: int, own_head: bool = True
) -> Shapes:
    """GPT-NeoX and Pythia: rotary positions, which are no parameters."""
    return (
        {"embed": (vocabulary, width)}
        | transformer_blocks("layer", layers=layers, width=width, hidden=hidden)
        | layer_norm("ln_f", width)
        | ({"head": (width, vocabulary)} if own_head else {})
    )


def phi(
    *,
    layers: int,
    width: int,
    hidden: int,
    heads: int,
    key_value_heads: int,
    head_width: int,
    vocabulary: int,
    own_head: bool = True,
) -> Shapes:
    """Phi 1, 1.5 and 2: attention and MLP side by side behind one norm, and biases everywhere."""
    queries, keys = heads * head_width, key_value_heads * head_width
    block = (
        layer_norm("ln", width)
        | dense("attention/q", width, queries)
        | dense("attention/k", width, keys)
        | dense("attention/v", width, keys)
        | dense("attention/out", queries, width)
        | dense("mlp/up", width, hidden)
        | dense("mlp/down", hidden, width)
    )
    head = dense("head", width, vocabulary) if own_head else {"head/bias": (vocabulary,)}
    embed = {"embed": (vocabulary, width)}
    return embed | _repeated("layer", layers, block) | layer_norm("ln_f", width) | head


def bert(
    *,
    layers: int,
    width: int,
    hidden: int,
    vocabulary: int,
    positions: int,
    token_types: int,
    pooler: bool = True,
) -> Shapes:
    """BERT, RoBERTa and DistilBERT without task heads; the last has no token types or pooler."""
    embeddings = {"word": (vocabulary, width), "position": (positions, width)}
    if token_types:
        embeddings["token_type"] = (token_types, width)
    return (
        prefixed("embeddings", embeddings | layer_norm("ln", width))
        | transformer_blocks("layer", layers=layers, width=width, hidden=hidden)
        | (dense("pooler", width, width) if pooler else {})
    )


def vit(
    *,
    layers: int,
    width: int,
    hidden: int,
    patch: int,
    image: int = 224,
    channels: int = 3,
    classes: int = 1000,
) -> Shapes:
    """A Vision Transformer for square images, with a class token and a linear head.

    With `classes=0` it has the pooler of a model without a task in place of the head.
    """
    patches = (image // patch) ** 2
    return (
        {"patches/kernel": (patch, patch, channels, width), "patches/bias": (width,)}
        | {"class_token": (1, 1, width), "positions": (1, patches + 1, width)}
        | transformer_blocks("layer", layers=layers, width=width, hidden=hidden)
        | layer_norm("ln", width)
        | (dense("head", width, classes) if classes else dense("pooler", width, width))
    )


def t5(
    *,
    layers: int,
    decoder_layers: int,
    width: int,
    hidden: int,
    heads: int,
    head_width: int,
    vocabulary: int,
    buckets: int = 32,
    gated: bool = False,
    own_head: bool = False,
) -> Shapes:
    """T5: an encoder and a decoder without biases, with relative positions in `buckets`.

    Args:
      layers: Blocks of the encoder.
      decoder_layers: Blocks of the decoder.
      width: Of the stream between blocks.
      hidden: Width inside of an MLP.
      heads: Heads of every attention.
      head_width: Of each head.
      vocabulary: Tokens.
      buckets: Distances that positions are told apart by, in the first block of either part.
      gated: Whether MLPs are gated, as since T5 1.1.
      own_head: Whether the last matrix is another one than the embedding, as since T5 1.1.
    """
    inner = heads * head_width

    def attention(name: str) -> Shapes:
        matrices: Shapes = {part: (width, inner) for part in ("q", "k", "v")}
        return prefixed(name, matrices | {"out": (inner, width), "norm/scale": (width,)})

    mlp: Shapes = {
        f"mlp/{part}": (width, hidden) for part in (("gate", "up") if gated else ("up",))
    }
    mlp |= {"mlp/down": (hidden, width), "mlp/norm/scale": (width,)}
    around = {"positions": (buckets, heads), "norm/scale": (width,)}
    return (
        {"embed": (vocabulary, width)}
        | prefixed("encoder", around)
        | _repeated("encoder/layer", layers, attention("attention") | mlp)
        | prefixed("decoder", around)
        | _repeated(
            "decoder/layer", decoder_layers, attention("attention") | attention("cross") | mlp
        )
        | ({"head": (width, vocabulary)} if own_head else {})
    )


def llama(
    *,
    layers: int,
    width: int,
    hidden: int,
    heads: int,
    key_value_heads: int,
    vocabulary: int,
    head_width: int,
    own_head: bool = True,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    norms_after: bool = False,
    head_norms: bool = False,
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
      qkv_bias: Whether queries, keys and values have biases, as in Qwen2.
      out_bias: Whether what comes out of attention has one.
      mlp_bias: Whether MLPs have biases.
      norms_after: Whether there are norms after attention and MLP too, as in Gemma 2.
      head_norms: Whether queries and keys are normalised in each head, as in Qwen3.
      experts: How many MLPs a block has, stacked along a first axis, with a router before them; 0
        is one MLP and no router, as in all but Mixtral and other mixtures of experts.
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
    if out_bias:
        block["attention/out_bias"] = (width,)
    if mlp_bias:
        block |= {"mlp/gate_bias": (hidden,), "mlp/up_bias": (hidden,), "mlp/down_bias": (width,)}
    if norms_after:
        block |= {"attention_norm_after/scale": (width,), "mlp_norm_after/scale": (width,)}
    if head_norms:
        block |= {"attention/q_norm/scale": (head_width,), "attention/k_norm/scale": (head_width,)}
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
