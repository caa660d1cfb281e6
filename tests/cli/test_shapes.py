import math

import pytest

from optax_lamblion.demo import shapes


def total(model):
    return sum(math.prod(shape) for shape in model.values())


# The elements of the published checkpoints, as their authors or the libraries that load them state.
KNOWN = {
    "gpt2-124m": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "bert-large": 335_141_888,
    "vit-b-16": 86_567_656,
    "vit-l-16": 304_326_632,
    "resnet50": 25_557_032,
    "llama-3.2-1b": 1_235_814_400,
    "llama-8b": 8_030_261_248,
    "llama-70b": 70_553_706_496,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen-2.5-7b": 7_615_616_512,
}


def test_every_model_has_a_known_number_of_parameters():
    assert {name: total(make()) for name, make in shapes.MODELS.items()} == KNOWN


@pytest.mark.parametrize("name", KNOWN)
def test_docstrings_state_the_number(name):
    assert f": {KNOWN[name]:,} parameters" in (shapes.MODELS[name].__doc__ or "")


def test_models_count_what_they_have():
    assert shapes.count(shapes.resnet50()) == KNOWN["resnet50"]


def test_experts_are_one_stack_for_each_matrix():
    model, dense = shapes.mixtral_8x7b(), shapes.mistral_7b()
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
