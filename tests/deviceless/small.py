"""Steps of many small leaves, as cases: 98 of them, as those of GPT-2, and nothing else."""

import functools

import jax
import jax.numpy as jnp

from tests.deviceless.cases import case, ours

SIZES = (768, 768, 768, 768, 2304, 768, 3072, 768)  # of a layer
OPTIMIZERS = ("lion8bit", "adamw8bit", "lamb8bit")


def case_name(optimizer):
    """The name of a case."""
    return f"small leaves/{optimizer}"


def _build(optimizer):
    sizes = SIZES * 12 + (768, 768)
    leaves = [jax.ShapeDtypeStruct((size,), jnp.bfloat16) for size in sizes]
    return ours(optimizer, leaves, fused=True)


for _optimizer in OPTIMIZERS:
    case(case_name(_optimizer), targets=("h200",))(functools.partial(_build, _optimizer))
