import math

import pytest

from optax_lamblion.demo import shapes


def total(model):
    return sum(math.prod(shape) for shape in model.values())


# The totals that the models' authors and libraries state.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("gpt2-124m", 124_439_808), ("llama-8b", 8_030_261_248), ("resnet50", 25_557_032)],
)
def test_models_have_their_known_number_of_parameters(name, parameters):
    assert total(shapes.MODELS[name]()) == parameters


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
