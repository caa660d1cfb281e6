"""A converted state is where its parameters are, with the numbers that it has anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from optax_lamblion import (
    StateOptions,
    convert_state,
    lamb8bit,
    lion8bit,
    lion32bit,
    paged_lamb8bit,
    paged_lion8bit,
)
from tests.checkpoints import problem
from tests.variants import small_pages

BLOCKS = StateOptions(block_size=64)
TARGETS = {
    "lion8bit": lion8bit(options=BLOCKS),
    "lion32bit": lion32bit(),
    "paged_lion8bit": paged_lion8bit(options=small_pages(BLOCKS)),
    "the same": lion8bit(),
    "the same, paged": paged_lion8bit(options=small_pages()),
    "tensor-wise": lion8bit(block_wise=False),
}
SOURCES = {
    "lion8bit": lion8bit(),
    "paged_lion8bit": paged_lion8bit(options=small_pages()),
    "lion32bit": lion32bit(),
}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_goes_where_its_parameters_are(kind, source, to):
    """From one device or a mesh to another, in another memory: with the numbers of one device."""
    tx, numbers = TARGETS[to], {}
    for place in problem.PLACES:
        old = problem.filled(SOURCES[source].init(problem.params(place, KINDS[kind])))
        for to_place in ("one device", "8 devices"):
            p = problem.params(to_place, KINDS[kind])
            new = convert_state(old, p, tx)
            problem.assert_in_place(new, problem.expected_places(tx, p))
            numbers[place, to_place] = problem.bits(new)
    assert all(x == numbers["one device", "one device"] for x in numbers.values())


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_under_jit_it_goes_to_the_right_memory(source, to):
    p, tx = problem.params(), TARGETS[to]
    old = problem.filled(SOURCES[source].init(p))
    new = jax.jit(lambda state: convert_state(state, p, tx))(old)
    problem.assert_in_place(new, problem.expected_places(tx, p))
    assert problem.bits(new) == problem.bits(convert_state(old, p, tx))


def test_shapes_will_do_for_parameters():
    tx = paged_lamb8bit(options=small_pages(BLOCKS))
    for place in problem.PLACES:
        p = problem.params(place)
        old = problem.filled(lamb8bit().init(p))
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), p
        )
        new = convert_state(old, shapes, tx)
        problem.assert_in_place(new, problem.expected_places(tx, p))
        assert problem.bits(new) == problem.bits(convert_state(old, p, tx))


def test_without_places_a_state_stays_where_it_is():
    p = problem.params()
    old = problem.filled(lion8bit().init(p))
    new = convert_state(old, problem.structs(p), lion8bit(options=BLOCKS))
    assert new.mu["rows"].sharding == p["rows"].sharding


def test_the_steps_after_it_are_one_program():
    """All arrays of a state are committed, or none is."""
    for committed in (False, True):
        p = problem.params()
        p = p if committed else jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), p)
        old = jax.tree.map(np.asarray, problem.filled(lion8bit().init(p)))
        tx, traced = lion8bit(options=BLOCKS), []
        state = convert_state(old, p, tx)
        assert {x.committed for x in jax.tree.leaves(state)} == {committed}

        @jax.jit
        def step(p, state, tx=tx, traced=traced):
            traced.append(1)
            return tx.update(p, state, p)

        for _ in range(2):
            _, state = step(p, state)
        assert len(traced) == 1
