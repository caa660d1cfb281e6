"""Writes `tests/cli/parameter_counts.json`: what `transformers` makes of some small configs.

`optax-lamblion memory --model config.json` computes shapes from a config. These counts come from
the models themselves, built without memory for their parameters. To write them again, in an
environment of its own:

    pip install torch transformers
    python -m tests.peers.write_parameter_counts
"""

import copy
import json
import pathlib

# Each model_type with odd numbers, so that no two fields can be mistaken for each other, and then
# once more for each field that adds or removes tensors.
_DECODER = {
    "vocab_size": 101,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_ENCODER = {
    "vocab_size": 101,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_T5 = {
    "vocab_size": 101,
    "d_model": 24,
    "d_kv": 7,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 9,
}
_GPT2 = {"vocab_size": 101, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 33}
_VIT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 30,
    "patch_size": 10,
    "num_channels": 2,
}

# model_type: (class, fields, further fields of each variant)
CASES = {
    "llama": (
        "LlamaForCausalLM",
        _DECODER,
        {
            "attention_bias": {"attention_bias": True},
            "mlp_bias": {"mlp_bias": True},
            "tied": {"tie_word_embeddings": True},
            "head_dim": {"head_dim": 10},
            "all heads": {"num_key_value_heads": None},
        },
    ),
    "mistral": (
        "MistralForCausalLM",
        _DECODER,
        {"tied": {"tie_word_embeddings": True}, "head_dim": {"head_dim": 10}},
    ),
    "mixtral": ("MixtralForCausalLM", _DECODER, {"experts": {"num_local_experts": 3}}),
    "qwen2": ("Qwen2ForCausalLM", _DECODER, {"tied": {"tie_word_embeddings": True}}),
    "qwen3": (
        "Qwen3ForCausalLM",
        _DECODER,
        {"head_dim": {"head_dim": 10}, "attention_bias": {"attention_bias": True}},
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        _DECODER | {"moe_intermediate_size": 14, "head_dim": 10},
        {"experts": {"num_experts": 5}, "attention_bias": {"attention_bias": True}},
    ),
    "gemma": (
        "GemmaForCausalLM",
        _DECODER,
        {"head_dim": {"head_dim": 10}, "attention_bias": {"attention_bias": True}},
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        _DECODER,
        {"head_dim": {"head_dim": 10}, "attention_bias": {"attention_bias": True}},
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        _DECODER,
        {"head_dim": {"head_dim": 10}, "attention_bias": {"attention_bias": True}},
    ),
    "phi": ("PhiForCausalLM", _DECODER, {"tied": {"tie_word_embeddings": True}}),
    "phi3": ("Phi3ForCausalLM", _DECODER, {"tied": {"tie_word_embeddings": True}}),
    "gpt2": ("GPT2LMHeadModel", _GPT2, {"inner": {"n_inner": 50}}),
    "gpt_neox": ("GPTNeoXForCausalLM", _ENCODER, {"tied": {"tie_word_embeddings": True}}),
    "bert": (
        "BertModel",
        _ENCODER,
        {"embeddings": {"max_position_embeddings": 33, "type_vocab_size": 5}},
    ),
    "roberta": (
        "RobertaModel",
        _ENCODER,
        {"embeddings": {"max_position_embeddings": 33, "type_vocab_size": 1}},
    ),
    "xlm-roberta": ("XLMRobertaModel", _ENCODER, {"embeddings": {"type_vocab_size": 1}}),
    "distilbert": (
        "DistilBertModel",
        {"vocab_size": 101, "dim": 24, "hidden_dim": 40, "n_layers": 3, "n_heads": 4},
        {"positions": {"max_position_embeddings": 33}},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        _T5,
        {
            "gated": {"feed_forward_proj": "gated-gelu"},
            "one depth": {"num_decoder_layers": None},
        },
    ),
    # Since version 5 `transformers` ties them whatever the config says, also where the published
    # checkpoints have a head of their own. `test_shapes.py` has the sizes of these.
    "mt5": (
        "MT5ForConditionalGeneration",
        _T5 | {"tie_word_embeddings": True},
        {"plain": {"feed_forward_proj": "relu"}},
    ),
    "vit": (
        "ViTForImageClassification",
        _VIT,
        {"labels": {"id2label": {str(i): str(i) for i in range(7)}}},
    ),
    "vit without a task": ("ViTModel", _VIT, {}),
}


def configs():
    """`(name, config)` of every case."""
    for name, (class_name, fields, variants) in CASES.items():
        plain = {"model_type": name.split()[0], "architectures": [class_name]} | fields
        yield name, plain
        for variant, more in variants.items():
            yield f"{name}, {variant}", plain | more


def count(config):
    """How many parameters the model has; those that are tied count once."""
    import torch
    import transformers

    config = copy.deepcopy(config)
    settings = transformers.AutoConfig.for_model(config.pop("model_type"))
    settings = type(settings).from_dict(config | {"pad_token_id": 0})
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(settings)
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())


def main():
    """Writes the file."""
    found = [{"name": name, "config": x, "parameters": count(x)} for name, x in configs()]
    path = pathlib.Path(__file__).parents[1] / "cli" / "parameter_counts.json"
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
