"""Paged steps, compiled for a GPU: what they keep on the device, and when they move what."""

import math

import jax
import pytest

from tests.deviceless import paged
from tests.deviceless.compiling import copies, scalar_bytes
from tests.deviceless.daily import each
from tests.deviceless.transfers import STARTS, moved, overlaps

pytestmark = pytest.mark.deviceless

BOUND = (paged.IN_FLIGHT + 1) * paged.PAGE_BYTES
BY_LEAVES = {"name": paged.NAMES, "leaves": paged.LEAVES}
BY_CASE = each(["{name}/{leaves}/{form}"], BY_LEAVES | {"form": paged.FORMS})


def elements(name, leaves):
    return [math.prod(shape) for shape in paged.shapes(name, leaves)]


def state_bytes(name, leaves):
    """Of all leaves; their scales are rounded up to whole blocks."""
    slots = 2 if "lamb" in name else 1
    each = (4 * n if "32" in name else n + 4 * -(-n // 256) for n in elements(name, leaves))
    return slots * sum(each)


def params_bytes(name, leaves):
    return 2 * sum(elements(name, leaves))


@each(["{name}/{leaves}/apply_fused"], BY_LEAVES)
def test_memory_on_the_device_does_not_grow_with_the_state(facts_for, name, leaves):
    facts = facts_for("h200")[f"{name}/{leaves}/apply_fused"]["facts"]
    # The program makes its own gradients, which are no state.
    assert facts["temp"] - params_bytes(name, leaves) <= BOUND


@each(["{name}/{leaves}/update"], BY_LEAVES)
def test_an_update_needs_the_updates_on_top(facts_for, name, leaves):
    """Of small leaves, as an array of their own. Pieces are written over the gradient."""
    facts = facts_for("h200")[f"{name}/{leaves}/update"]["facts"]
    assert facts["temp"] - 2 * params_bytes(name, leaves) <= BOUND


@BY_CASE
def test_host_buffers_are_written_in_place(facts_for, name, leaves, form):
    facts = facts_for("h200")[f"{name}/{leaves}/{form}"]["facts"]
    state = state_bytes(name, leaves)
    assert facts["host"] == {"arguments": state, "outputs": state, "alias": state, "temp": 0}
    assert facts["alias"] == params_bytes(name, leaves) + scalar_bytes(name)
    assert not [x for x in facts["transfers"] if x[0] == "within host"]


@BY_CASE
def test_no_leaf_is_copied(facts_for, name, leaves, form):
    facts = facts_for("h200")[f"{name}/{leaves}/{form}"]["facts"]
    leaf = 2 * min(elements(name, leaves))
    assert [x for x in copies(facts, leaf) if not x["name"].startswith(STARTS)] == []


@BY_CASE
def test_all_of_the_state_goes_in_and_out_once(facts_for, name, leaves, form):
    facts = facts_for("h200")[f"{name}/{leaves}/{form}"]["facts"]
    bytes_moved = moved(facts["transfers"])
    state = state_bytes(name, leaves)
    assert bytes_moved["out"] == state
    # LAMB reads leaves in pieces a second time, when it knows their norms.
    in_pieces = leaves not in ("16 leaves", "64 leaves")
    assert bytes_moved["in"] == state * (2 if "lamb" in name and in_pieces else 1)


@each(["{name}/{leaves}/apply_fused"], BY_LEAVES)
def test_transfers_are_under_way_while_kernels_run(facts_for, name, leaves):
    events = facts_for("h200")[f"{name}/{leaves}/apply_fused"]["facts"]["transfers"]
    first = next(i for i, x in enumerate(events) if x[0] == "out")
    last = max(i for i, x in enumerate(events) if x[0] == "in")
    # Between the first store and the last fetch: all but a few, where XLA saw nothing to gain.
    counts = overlaps(events[first : last + 1])
    assert counts["kernels"] > 2
    assert counts["in"] + counts["out"] >= 0.7 * counts["kernels"]
    # A page is stored before the last ones are fetched: the stream is no tide.
    order = [x[0] for x in events if x[0] in ("in", "out")]
    turns = sum(a != b for a, b in zip(order, order[1:], strict=False))
    pages = math.ceil(state_bytes(name, leaves) / paged.PAGE_BYTES)
    assert turns >= pages


def test_the_stream_runs_beside_the_backward_pass(facts_for):
    """Unless a clip has to see all gradients first."""
    during = {}
    for name in ("training", "training, clipped"):
        events = facts_for("h200")[f"paged_lion8bit/{name}"]["facts"]["transfers"]
        kinds = [event for event, *_ in events]
        assert kinds.count("matmul") >= 3 * paged.LAYERS - 1
        first = kinds.index("out")
        last = len(kinds) - 1 - kinds[::-1].index("in")
        during[name] = kinds[first:last].count("matmul")
    # Of two matmuls a layer, one for each page at least.
    assert during["training"] >= paged.LAYERS
    assert during["training, clipped"] < during["training"] / 2


@each(["paged_lion8bit/{wrapper}"], {"wrapper": paged.WRAPPED})
def test_state_passes_through_branches_and_loops(facts_for, wrapper):
    """No host compute, no copy on the host, and the bound: in a branch and in a loop as well."""
    facts = facts_for("h200")[f"paged_lion8bit/{wrapper}"]["facts"]
    state = state_bytes("paged_lion8bit", "16 leaves")
    assert facts["host"] == {"arguments": state, "outputs": state, "alias": state, "temp": 0}
    assert not facts["host_compute"]
    # Gradients, updates, and for accumulation their float32 mean.
    assert facts["temp"] <= BOUND + 3 * params_bytes("paged_lion8bit", "16 leaves")


@each(["{name}/3 large leaves/restored"], {"name": paged.NAMES})
def test_state_from_elsewhere_goes_to_the_host(facts_for, name):
    facts = facts_for("h200")[f"{name}/3 large leaves/restored"]["facts"]
    assert facts["host"]["arguments"] == 0
    assert facts["host"]["outputs"] == state_bytes(name, "3 large leaves")
    assert not facts["host_compute"]


@each(["{name}/{leaves}/init"], BY_LEAVES | {"leaves": ("64 leaves", "3 large leaves")})
def test_a_compiled_init_needs_a_page_or_two(facts_for, name, leaves):
    facts = facts_for("h200")[f"{name}/{leaves}/init"]["facts"]
    assert facts["host"]["outputs"] == state_bytes(name, leaves)
    assert facts["temp"] <= 2.1 * paged.PAGE_BYTES
    assert not facts["host_compute"]


def test_the_cases_are_what_they_are_meant_to_be():
    """Grouped leaves and leaves in pieces are both there, in 8 bits and in 32."""
    for name in paged.NAMES:
        state = jax.eval_shape(paged.optimizer(name).init, paged.params(name, "16 leaves"))
        assert all(jax.typeof(x).memory_space == jax.memory.Space.Host for x in state.mu.values())
