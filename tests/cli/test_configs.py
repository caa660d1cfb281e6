"""Configs of Hugging Face against published sizes, and against the models of `transformers`."""

import json
import pathlib

import pytest

from optax_lamblion.demo import configs, shapes

# Written by `tests/peers/write_parameter_counts.py`.
COUNTED = json.loads(pathlib.Path(__file__).with_name("parameter_counts.json").read_text())

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}

# The fields of published configs, and the elements of the checkpoints that belong to them.
PUBLISHED = {
    "flan-t5-base": (
        247_577_856,
        {"model_type": "t5", "num_layers": 12, "num_decoder_layers": 12, "d_model": 768,
         "d_ff": 2048, "d_kv": 64, "num_heads": 12, "vocab_size": 32128,
         "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5-small": (
        60_506_624,
        {"model_type": "t5", "num_layers": 6, "d_model": 512, "d_ff": 2048, "d_kv": 64,
         "num_heads": 8, "vocab_size": 32128},
    ),
    "mt5-small": (
        300_176_768,
        {"model_type": "mt5", "num_layers": 8, "num_decoder_layers": 8, "d_model": 512,
         "d_ff": 1024, "d_kv": 64, "num_heads": 6, "vocab_size": 250112,
         "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "roberta-base": (
        124_645_632,
        {"model_type": "roberta", "num_hidden_layers": 12, "hidden_size": 768,
         "intermediate_size": 3072, "vocab_size": 50265, "max_position_embeddings": 514,
         "type_vocab_size": 1},
    ),
    "xlm-roberta-base": (
        278_043_648,
        {"model_type": "xlm-roberta", "num_hidden_layers": 12, "hidden_size": 768,
         "intermediate_size": 3072, "vocab_size": 250002, "max_position_embeddings": 514,
         "type_vocab_size": 1},
    ),
    "distilbert-base-uncased": (
        66_362_880,
        {"model_type": "distilbert", "n_layers": 6, "dim": 768, "hidden_dim": 3072,
         "vocab_size": 30522, "max_position_embeddings": 512},
    ),
    "pythia-70m": (
        70_426_624,
        {"model_type": "gpt_neox", "num_hidden_layers": 6, "hidden_size": 512,
         "intermediate_size": 2048, "vocab_size": 50304, "tie_word_embeddings": False},
    ),
    "phi-2": (
        2_779_683_840,
        {"model_type": "phi", "num_hidden_layers": 32, "hidden_size": 2560,
         "intermediate_size": 10240, "num_attention_heads": 32, "num_key_value_heads": 32,
         "vocab_size": 51200},
    ),
    "gemma-7b": (
        8_537_680_896,
        {"model_type": "gemma", "num_hidden_layers": 28, "hidden_size": 3072,
         "intermediate_size": 24576, "num_attention_heads": 16, "num_key_value_heads": 16,
         "head_dim": 256, "vocab_size": 256000},
    ),
    "qwen3-0.6b": (
        596_049_920,
        {"model_type": "qwen3", "num_hidden_layers": 28, "hidden_size": 1024,
         "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8,
         "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True},
    ),
    "qwen3-30b-a3b": (
        30_532_122_624,
        {"model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048,
         "moe_intermediate_size": 768, "num_attention_heads": 32, "num_key_value_heads": 4,
         "head_dim": 128, "vocab_size": 151936, "num_experts": 128, "mlp_only_layers": []},
    ),
    "vit-base-patch16-224-in21k": (
        86_389_248,
        {"model_type": "vit", "architectures": ["ViTModel"], "num_hidden_layers": 12,
         "hidden_size": 768, "intermediate_size": 3072},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_their_published_size(name):
    parameters, config = PUBLISHED[name]
    assert shapes.count(configs.model(config).shapes) == parameters


@pytest.mark.parametrize("case", COUNTED, ids=lambda case: case["name"])
def test_a_config_is_the_model_that_transformers_makes_of_it(case):
    found = configs.model(case["config"])
    assert shapes.count(found.shapes) == case["parameters"]
    assert found.counted_as == case["config"]["architectures"][0]


def test_every_kind_of_model_was_counted():
    assert {case["config"]["model_type"] for case in COUNTED} == configs.SHAPES.keys()


def test_null_is_the_default():
    nulls = {"head_dim": None, "num_key_value_heads": None, "attention_bias": None}
    assert configs.model(LLAMA | nulls) == configs.model(LLAMA)


def test_unknown_kinds_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'mamba' is not known.*llama.*gpt2"):
        configs.model(LLAMA | {"model_type": "mamba"})


@pytest.mark.parametrize("kind", [None, 3, ["llama"]])
def test_a_config_without_a_kind_is_refused(kind):
    with pytest.raises(ValueError, match="no `model_type`"):
        configs.model(LLAMA | {"model_type": kind})


@pytest.mark.parametrize("name", [name for name in LLAMA if name != "model_type"])
def test_a_missing_field_is_named(name):
    config = {key: value for key, value in LLAMA.items() if key != name}
    with pytest.raises(ValueError, match=f"lacks `{name}`"):
        configs.model(config)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "64", [64], 10**12, float("nan")])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "head_dim"])
def test_fields_that_are_no_sizes_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` of this config must be a whole number"):
        configs.model(LLAMA | {name: value})


def test_endless_models_are_refused():
    """Each layer is a few entries of a dict, so a billion of them would be no memory at all."""
    with pytest.raises(ValueError, match="1 to 10,000"):
        configs.model(LLAMA | {"num_hidden_layers": 10**9})


def test_heads_that_do_not_divide_the_width_need_one_of_their_own():
    with pytest.raises(ValueError, match="7 heads cannot share"):
        configs.model(LLAMA | {"num_attention_heads": 7})
    assert configs.model(LLAMA | {"num_attention_heads": 7, "head_dim": 8})


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("qwen3_moe", "mlp_only_layers", [0]),
        ("qwen3_moe", "decoder_sparse_step", 2),
        ("phi", "qk_layernorm", True),
        ("gpt2", "add_cross_attention", True),
        ("bert", "add_cross_attention", True),
        ("gpt_neox", "attention_bias", False),
        ("vit", "qkv_bias", False),
    ],
)
def test_variants_with_other_tensors_are_refused(kind, field, value):
    (config,) = (case["config"] for case in COUNTED if case["name"] == kind)
    with pytest.raises(ValueError, match=f"`{field}` is "):
        configs.model(config | {field: value})


def test_flags_and_words_have_to_be_some():
    with pytest.raises(ValueError, match="`attention_bias` of this config must be true or false"):
        configs.model(LLAMA | {"attention_bias": 1})
    (config,) = (case["config"] for case in COUNTED if case["name"] == "t5")
    with pytest.raises(ValueError, match="`feed_forward_proj` of this config must be a text"):
        configs.model(config | {"feed_forward_proj": 1})
