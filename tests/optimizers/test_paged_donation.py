"""A donated step in pages writes leaves in place, piece by piece, also on a CPU.

Read off the compiled program. Pages of a CPU are in the same memory as all else, but XLA for it
copies a whole leaf, once a page, where it cannot tell that what is read has been read.
"""

import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_lamblion
from optax_lamblion import StateOptions, apply_fused
from tests.variants import VARIANTS

PAGE = 2**20
SHAPES = {"rows": (2048, 1024), "odd tail": (2**21 - 100,)}
NAMES = [v.name for v in VARIANTS if v.paged]


def compiled(name, shape, way, dtype, **options):
    """A donated step on a leaf whose state takes several pages."""
    options = StateOptions(page_bytes=PAGE, page_min_size=0, **options)
    tx = getattr(optax_lamblion, name)(1e-3, weight_decay=0.1, options=options)

    def step(p, state, g):
        if way == "apply_fused":
            return apply_fused(tx, p, g, state)
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    p = jnp.zeros(shape, dtype)
    return jax.jit(step, donate_argnums=(0, 1)).lower(p, tx.init(p), p).compile()


def copies(program, size):
    """How many arrays of so many elements it copies."""
    copied = re.findall(r"\w+\[([\d,]+)\]\S* copy\(", program.as_text())
    return sum(math.prod(map(int, shape.split(","))) == size for shape in copied)


@pytest.mark.parametrize("way", ["apply_fused", "update"])
@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        *((name, "rows", jnp.float32) for name in NAMES),
        ("paged_lion8bit", "odd tail", jnp.float32),
        ("paged_lamb8bit", "odd tail", jnp.bfloat16),
        ("paged_adamw8bit", "rows", jnp.bfloat16),
    ],
)
def test_a_leaf_in_pieces_is_written_in_place(name, shape, dtype, way):
    size = math.prod(SHAPES[shape])
    program = compiled(name, SHAPES[shape], way, dtype)
    # Updates are written piece by piece over a copy of the gradients, which are not donated.
    assert copies(program, size) == (way == "update")
    updates = size * jnp.dtype(dtype).itemsize if way == "update" else 0
    # Besides, what the pieces of some pages need: several arrays in float32 of a page of codes.
    assert program.memory_analysis().temp_size_in_bytes <= updates + 4 * PAGE


@pytest.mark.parametrize("name", ["paged_lion8bit", "paged_lamb8bit"])
def test_residuals_in_pieces_are_written_in_place(name):
    shape = SHAPES["rows"]
    compensated = dict(param_rounding="compensated")
    program = compiled(name, shape, "apply_fused", jnp.bfloat16, **compensated)
    assert not copies(program, math.prod(shape))
    assert program.memory_analysis().temp_size_in_bytes <= 4 * PAGE
