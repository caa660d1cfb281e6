"""A Hugging Face `config.json` as the shapes of the model that it describes.

`SHAPES` has a function for each `model_type`. It reads the fields that decide a shape, with the
defaults that the `transformers` library has for them, and refuses values under which a model has
tensors that the family does not know of. All other fields are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from optax_lamblion.demo import architectures
from optax_lamblion.demo.architectures import Shapes


class Model(NamedTuple):
    """The shapes of a model, and the class of `transformers` whose parameters they are."""

    shapes: Shapes
    counted_as: str


class Fields:
    """The fields of a config, checked as they are read.

    A field that is null counts as missing, as `transformers` has it.
    """

    def __init__(self, config: Mapping[str, Any]):
        self._config = config

    def size(self, name: str, default: int | None = None, most: int = 2**31) -> int:
        """A whole number of at least 1."""
        value = self._config.get(name)
        value = default if value is None else value
        if value is None:
            raise ValueError(
                f"This {self._config['model_type']!r} config lacks `{name}`, a whole number."
            )
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(
                f"`{name}` of this config must be a whole number from 1 to {most:,}, got {value!r}."
            )
        return value

    def layers(self, name: str, default: int | None = None) -> int:
        """How many blocks there are. Each has tensors of its own, so not every number will do."""
        return self.size(name, default, most=10_000)

    def head_width(self, width: int, heads: int, default: int | None = None) -> int:
        """How wide a head is: `head_dim`, the default of its family, or its part of the width."""
        if default is None and self._config.get("head_dim") is None:
            if width % heads:
                raise ValueError(
                    f"`hidden_size` of this config is {width}, which {heads} heads cannot share "
                    "evenly."
                )
            return width // heads
        return self.size("head_dim", default)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        return self._typed(name, default, "true or false")

    def word(self, name: str, default: str) -> str:
        """A text."""
        return self._typed(name, default, "a text")

    def _typed[T](self, name: str, default: T, what: str) -> T:
        """A value of the type of `default`, which a missing field and null mean."""
        value = self._config.get(name)
        value = default if value is None else value
        if not isinstance(value, type(default)):
            raise ValueError(f"`{name}` of this config must be {what}, got {value!r}.")
        return value

    def refuse_unless(self, name: str, *usual: Any) -> None:
        """Raises for a value that adds or removes tensors which nothing here counts."""
        value = self._config.get(name, usual[0])
        if value is not None and value not in usual:
            raise ValueError(
                f"`{name}` is {value!r} in this {self._config['model_type']!r} config, and only "
                f"models with {' or '.join(repr(x) for x in usual)} are known here."
            )

    def classes(self, default: int) -> int:
        """How many labels a classifier has."""
        labels = self._config.get("id2label")
        if isinstance(labels, dict) and labels:
            return len(labels)
        return self.size("num_labels", default)

    def architecture(self) -> str | None:
        """The class that the config was saved from, if it says so."""
        names = self._config.get("architectures")
        return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def model(config: Mapping[str, Any]) -> Model:
    """The model that a config describes; raises `ValueError` if it cannot be told."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ValueError(
            f"There is no `model_type` in this config, or it is no text. Known are: "
            f"{', '.join(SHAPES)}."
        )
    if kind not in SHAPES:
        raise ValueError(
            f"The model_type {kind!r} is not known here. Known are: {', '.join(SHAPES)}."
        )
    return SHAPES[kind](Fields(config))


def _decoder(
    class_name: str,
    *,
    own_head: bool = True,
    head_width: int | None = None,
    hidden: str = "intermediate_size",
    **always: Any,
) -> Callable[[Fields], Model]:
    """A reader for decoders in the manner of Llama.

    Args:
      class_name: What `transformers` calls it.
      own_head: Whether it has a head of its own unless the config says otherwise.
      head_width: Of its heads, unless the config says otherwise; None divides the width.
      hidden: The field with the width inside of an MLP.
      **always: What `architectures.llama` is given for each of its models: values, or functions of
        the fields.
    """

    def read(fields: Fields) -> Model:
        width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
        more: dict[str, Any] = {k: x(fields) if callable(x) else x for k, x in always.items()}
        shapes = architectures.llama(
            layers=fields.layers("num_hidden_layers"),
            width=width,
            hidden=fields.size(hidden),
            heads=heads,
            key_value_heads=fields.size("num_key_value_heads", heads),
            vocabulary=fields.size("vocab_size"),
            head_width=fields.head_width(width, heads, head_width),
            own_head=not fields.flag("tie_word_embeddings", not own_head),
            **more,
        )
        return Model(shapes, class_name)

    return read


def _attention_bias(fields: Fields) -> bool:
    return fields.flag("attention_bias", False)


def _qwen3_moe(fields: Fields) -> Model:
    fields.refuse_unless("mlp_only_layers", [])
    fields.refuse_unless("decoder_sparse_step", 1)
    return _decoder(
        "Qwen3MoeForCausalLM",
        head_width=128,
        hidden="moe_intermediate_size",
        head_norms=True,
        qkv_bias=_attention_bias,
        out_bias=_attention_bias,
        experts=fields.size("num_experts", 128),
    )(fields)


def _phi(fields: Fields) -> Model:
    fields.refuse_unless("qk_layernorm", False)
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    shapes = architectures.phi(
        layers=fields.layers("num_hidden_layers"),
        width=width,
        hidden=fields.size("intermediate_size"),
        heads=heads,
        key_value_heads=fields.size("num_key_value_heads", heads),
        vocabulary=fields.size("vocab_size"),
        head_width=fields.head_width(width, heads),
        own_head=not fields.flag("tie_word_embeddings", False),
    )
    return Model(shapes, "PhiForCausalLM")


def _gpt2(fields: Fields) -> Model:
    fields.refuse_unless("add_cross_attention", False)
    fields.refuse_unless("tie_word_embeddings", True)
    width = fields.size("n_embd")
    shapes = architectures.gpt2(
        layers=fields.layers("n_layer"),
        width=width,
        hidden=fields.size("n_inner", 4 * width),
        vocabulary=fields.size("vocab_size"),
        positions=fields.size("n_positions", 1024),
    )
    return Model(shapes, "GPT2LMHeadModel")


def _gpt_neox(fields: Fields) -> Model:
    fields.refuse_unless("attention_bias", True)
    shapes = architectures.gpt_neox(
        layers=fields.layers("num_hidden_layers"),
        width=fields.size("hidden_size"),
        hidden=fields.size("intermediate_size"),
        vocabulary=fields.size("vocab_size"),
        own_head=not fields.flag("tie_word_embeddings", False),
    )
    return Model(shapes, "GPTNeoXForCausalLM")


def _bert(class_name: str) -> Callable[[Fields], Model]:
    def read(fields: Fields) -> Model:
        fields.refuse_unless("add_cross_attention", False)
        shapes = architectures.bert(
            layers=fields.layers("num_hidden_layers"),
            width=fields.size("hidden_size"),
            hidden=fields.size("intermediate_size"),
            vocabulary=fields.size("vocab_size"),
            positions=fields.size("max_position_embeddings", 512),
            token_types=fields.size("type_vocab_size", 2),
        )
        return Model(shapes, class_name)

    return read


def _distilbert(fields: Fields) -> Model:
    shapes = architectures.bert(
        layers=fields.layers("n_layers"),
        width=fields.size("dim"),
        hidden=fields.size("hidden_dim"),
        vocabulary=fields.size("vocab_size"),
        positions=fields.size("max_position_embeddings", 512),
        token_types=0,
        pooler=False,
    )
    return Model(shapes, "DistilBertModel")


def _t5(class_name: str, own_head: bool, activation: str) -> Callable[[Fields], Model]:
    def read(fields: Fields) -> Model:
        layers = fields.layers("num_layers")
        shapes = architectures.t5(
            layers=layers,
            decoder_layers=fields.layers("num_decoder_layers", layers),
            width=fields.size("d_model"),
            hidden=fields.size("d_ff"),
            heads=fields.size("num_heads"),
            head_width=fields.size("d_kv", 64),
            vocabulary=fields.size("vocab_size"),
            buckets=fields.size("relative_attention_num_buckets", 32),
            gated=fields.word("feed_forward_proj", activation).startswith("gated-"),
            own_head=not fields.flag("tie_word_embeddings", not own_head),
        )
        return Model(shapes, class_name)

    return read


def _vit(fields: Fields) -> Model:
    fields.refuse_unless("qkv_bias", True)
    is_bare = fields.architecture() == "ViTModel"
    if is_bare:
        fields.refuse_unless("pooler_output_size", fields.size("hidden_size"))
    image, patch = fields.size("image_size", 224), fields.size("patch_size", 16)
    if patch > image:
        raise ValueError(f"`patch_size` of this config is {patch}, and `image_size` only {image}.")
    shapes = architectures.vit(
        layers=fields.layers("num_hidden_layers"),
        width=fields.size("hidden_size"),
        hidden=fields.size("intermediate_size"),
        patch=patch,
        image=image,
        channels=fields.size("num_channels", 3),
        classes=0 if is_bare else fields.classes(2),
    )
    return Model(shapes, "ViTModel" if is_bare else "ViTForImageClassification")


SHAPES: Mapping[str, Callable[[Fields], Model]] = MappingProxyType(
    {
        "llama": _decoder(
            "LlamaForCausalLM",
            qkv_bias=_attention_bias,
            out_bias=_attention_bias,
            mlp_bias=lambda fields: fields.flag("mlp_bias", False),
        ),
        "mistral": _decoder("MistralForCausalLM"),
        "mixtral": _decoder(
            "MixtralForCausalLM", experts=lambda fields: fields.size("num_local_experts", 8)
        ),
        "qwen2": _decoder("Qwen2ForCausalLM", qkv_bias=True),
        "qwen3": _decoder(
            "Qwen3ForCausalLM",
            head_width=128,
            head_norms=True,
            qkv_bias=_attention_bias,
            out_bias=_attention_bias,
        ),
        "qwen3_moe": _qwen3_moe,
        "gemma": _decoder(
            "GemmaForCausalLM",
            own_head=False,
            head_width=256,
            qkv_bias=_attention_bias,
            out_bias=_attention_bias,
        ),
        "gemma2": _decoder(
            "Gemma2ForCausalLM",
            own_head=False,
            head_width=256,
            norms_after=True,
            qkv_bias=_attention_bias,
            out_bias=_attention_bias,
        ),
        "gemma3_text": _decoder(
            "Gemma3ForCausalLM",
            own_head=False,
            head_width=256,
            norms_after=True,
            head_norms=True,
            qkv_bias=_attention_bias,
            out_bias=_attention_bias,
        ),
        "phi": _phi,
        "phi3": _decoder("Phi3ForCausalLM"),
        "gpt2": _gpt2,
        "gpt_neox": _gpt_neox,
        "bert": _bert("BertModel"),
        "roberta": _bert("RobertaModel"),
        "xlm-roberta": _bert("XLMRobertaModel"),
        "distilbert": _distilbert,
        "t5": _t5("T5ForConditionalGeneration", own_head=False, activation="relu"),
        "mt5": _t5("MT5ForConditionalGeneration", own_head=True, activation="gated-gelu"),
        "vit": _vit,
    }
)
"""Every `model_type` that is known, and how its fields are read."""
