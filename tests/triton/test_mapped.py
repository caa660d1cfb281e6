"""Under `jax.vmap` a Triton kernel is launched for one leaf after the other."""

import re

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
from optax_lamblion import StateOptions, apply_fused, lamb8bit, lion8bit
from tests.deviceless import compiling, sharing, targets

pytestmark = pytest.mark.deviceless
LEAVES = {"w": jax.ShapeDtypeStruct((3, 64, 256), jnp.bfloat16)}


@pytest.fixture(scope="module")
def mesh():
    sharing.need_compilers()
    return targets.make_mesh(targets.TARGETS["h200"])


def launches(executable):
    text = executable.as_text()
    return len(re.findall(r'custom_call_target="triton', text)), len(re.findall(r" while\(", text))


@pytest.mark.parametrize("make, kernels", [(lion8bit, 1), (lamb8bit, 2)])
def test_a_population_steps_one_by_one(mesh, make, kernels):
    tx = make(1e-3, options=StateOptions(implementation="triton"))

    def step(p, g):
        return jax.vmap(lambda p, g: apply_fused(tx, p, g, tx.init(p))[0])(p, g)

    assert launches(compiling.compile_for(mesh, step, LEAVES, LEAVES)) == (kernels, 1)


def test_arrays_are_quantized_one_by_one(mesh):
    def there_and_back(x):
        stored = pallas_kernels.quantize(x, seed=3, implementation="triton")
        return pallas_kernels.dequantize(*stored, implementation="triton")

    executable = compiling.compile_for(mesh, jax.vmap(there_and_back), LEAVES["w"])
    assert launches(executable)[0] == 2
