"""What `Optimizer` says where it is made, or called, with the wrong things."""

import pytest
from flax import linen, nnx

from optax_lamblion import lion8bit
from optax_lamblion.flax import Optimizer
from tests.flax import problem

NO_LORA = "`wrt=LoRAParam` selects nothing to train: the model has variables of the kinds Param"


def test_wrt_is_needed():
    with pytest.raises(TypeError, match=r"needs `wrt`.*`Optimizer\(model, tx, wrt=nnx.Param\)`"):
        Optimizer(problem.Model(), lion8bit())


def test_a_model_without_such_variables():
    with pytest.raises(ValueError, match=NO_LORA):
        Optimizer(problem.Model(), lion8bit(), wrt=nnx.LoRAParam)
    with pytest.raises(ValueError, match="the model has no variables at all"):
        Optimizer(nnx.Module(), lion8bit(), wrt=nnx.Param)


@pytest.mark.parametrize("tx, given", [(lion8bit, "the function `lion8bit`"), (1e-3, "0.001")])
def test_what_is_no_transformation(tx, given):
    with pytest.raises(TypeError, match=f"must be an Optax transformation.*, got {given}"):
        Optimizer(problem.Model(), tx, wrt=nnx.Param)


def test_a_module_of_linen():
    with pytest.raises(TypeError, match=r"is a Linen module.*`TrainState.create\("):
        Optimizer(linen.Dense(3), lion8bit(), wrt=nnx.Param)


def test_gradients_of_other_parameters():
    model = problem.Model()
    optimizer = Optimizer(model, lion8bit(), wrt=nnx.Param)
    before = problem.copy(problem.params_of(model))
    grads = problem.gradients(model)
    del grads["layers"]
    with pytest.raises(ValueError, match=r"has none of 'layers/0/bias', 'layers/0/kernel'"):
        optimizer.update(model, grads)
    with pytest.raises(ValueError, match="has 'embed/embedding', 'layers/0/bias'"):
        optimizer.update(nnx.Module(), problem.gradients(model))
    problem.assert_equal(problem.params_of(model), before)
