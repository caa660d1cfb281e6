import math

import pytest

from optax_lamblion.demo import shapes


def total(model):
    return sum(math.prod(shape) for shape in model.values())


# The elements of the published checkpoints, as their authors or the libraries that load them state.
KNOWN = {
    "gpt2-124m": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "t5-base": 222_903_552,
    "vit-b-16": 86_567_656,
    "vit-l-16": 304_326_632,
    "resnet50": 25_557_032,
    "llama-2-7b": 6_738_415_616,
    "llama-3.2-1b": 1_235_814_400,
    "llama-8b": 8_030_261_248,
    "llama-70b": 70_553_706_496,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "phi-3-mini": 3_821_079_552,
    "qwen-2.5-7b": 7_615_616_512,
    "qwen-3-8b": 8_190_735_360,
}


def test_every_model_has_a_known_number_of_parameters():
    assert {name: total(make()) for name, make in shapes.MODELS.items()} == KNOWN


def test_models_count_what_they_have():
    assert shapes.count(shapes.MODELS["resnet50"]()) == KNOWN["resnet50"]


def test_experts_are_one_stack_for_each_matrix():
    model, dense = shapes.MODELS["mixtral-8x7b"](), shapes.MODELS["mistral-7b"]()
    stacked = {name for name, shape in model.items() if len(shape) == 3}
    assert stacked == {name for name in dense if name.split("/")[-1] in ("gate", "up", "down")}
    # The rest of the model is the dense one, and a router.
    assert all(model[name] == (8,) * (name in stacked) + dense[name] for name in dense)
    assert {name.split("/")[-1] for name in model.keys() - dense.keys()} == {"router"}


@pytest.mark.parametrize("parameters", [1, 4095, 4096, 4097, 10**6, 7 * 10**9, 123_456_789_012])
def test_anonymous_models_have_exactly_the_size_asked_for(parameters):
    model = shapes.anonymous_model(parameters)
    assert total(model) == parameters
    assert all(math.prod(shape) > 0 for shape in model.values())
    assert len(model) <= 65


def test_structs_carry_shape_and_dtype():
    structs = shapes.as_structs({"w": (2, 3)}, "bfloat16")
    assert structs["w"].shape == (2, 3)
    assert structs["w"].dtype == "bfloat16"
