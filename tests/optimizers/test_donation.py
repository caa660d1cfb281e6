"""A donated step writes parameters and state in place.

Read off the compiled program, so it holds for every run of it.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.optimizers import problem
from tests.variants import every

SHAPES = {"rows": (64, 1024), "odd_tail": (65537,)}
SIZE = sum(map(math.prod, SHAPES.values()))
# What a step has to keep until it can be applied, in bytes per parameter: Lion's direction in
# int8 (a later pass overwrites the momentum it comes from); of LAMB an eighth as many partial sums
# of the squares of direction and parameters; of 8-bit state three numbers for every block. XLA's
# CPU scheduler may do so for all leaves at once.
KEPT = {"lion": 1, "lamb": 1.1, "adamw": 0.1}


@pytest.fixture(scope="module")
def programs():
    """Compiled donated steps by variant."""
    return {}


def compile_step(v, programs):
    if v.name not in programs:
        tx = v()

        def step(p, state, g):
            updates, state = tx.update(g, state, p)
            return optax.apply_updates(p, updates), state

        p = problem.tree(0, shapes=SHAPES)
        programs[v.name] = (
            jax.jit(step, donate_argnums=(0, 1)).lower(p, tx.init(p), p).compile(),
            tx,
        )
    return programs[v.name]


@every()
def test_donated_parameters_and_state_are_written_in_place(v, programs):
    program, tx = compile_step(v, programs)
    p = problem.tree(0, shapes=SHAPES)
    donated = sum(x.nbytes for x in jax.tree.leaves((p, tx.init(p))))
    assert program.memory_analysis().alias_size_in_bytes == donated


@every()
def test_a_donated_step_copies_no_leaf(v, programs):
    program, _ = compile_step(v, programs)
    copies = re.findall(r"\w+\[([\d,]*)\]\S* copy\(", program.as_text())
    sizes = [math.prod(map(int, filter(None, shape.split(",")))) for shape in copies]
    # Scales are copied: 1/256 of a leaf.
    assert max(sizes, default=0) <= min(map(math.prod, SHAPES.values())) // 128


@every()
def test_a_donated_step_needs_no_copy_of_the_state(v, programs):
    program, _ = compile_step(v, programs)
    temporary = program.memory_analysis().temp_size_in_bytes
    assert temporary <= KEPT[v.family] * SIZE * 1.1


@every()
def test_a_donated_step_runs(v, programs):
    program, tx = compile_step(v, programs)
    p, g = problem.tree(0, shapes=SHAPES), problem.tree(1, shapes=SHAPES)
    updates, _ = tx.update(g, tx.init(p), p)
    expected = jax.tree.map(np.array, optax.apply_updates(p, updates))
    state = tx.init(p)
    new, _ = program(p, state, g)
    assert all(x.is_deleted() for x in jax.tree.leaves((p, state)))
    atol = 1e-6 * float(jnp.max(jnp.abs(expected["rows"])))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), new, expected)
