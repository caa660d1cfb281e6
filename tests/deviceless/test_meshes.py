"""Steps on eight GPUs: what they say to each other, and that each works on its shards."""

import pytest

from tests.deviceless import meshes
from tests.deviceless.compiling import copies, scalar_bytes
from tests.deviceless.daily import each
from tests.deviceless.transfers import STARTS, moved

pytestmark = pytest.mark.deviceless

by_case = each(["{name}/8 {kind}/{form}"], {"name, kind, form": meshes.CASES})


def by_kind(*cases):
    return each(cases, {"kind": meshes.KINDS})


def shard_bytes(name):
    """Bytes of parameters, and of state with its scalars, on a device."""
    sizes, slots = meshes.shard_sizes(), 2 if "lamb" in name else 1
    coded = [n for key, n in sizes.items() if key != "small" and "8bit" in name]
    plain = [n for key, n in sizes.items() if key == "small" or "8bit" not in name]
    scales = 4 * (sum(n // 256 for n in coded) + (len(plain) if "8bit" in name else 0))
    state = slots * (sum(coded) + scales + 4 * sum(plain)) + scalar_bytes(name)
    return 2 * sum(sizes.values()), state


@by_case
def test_devices_add_up_norms_and_nothing_else(facts_for, name, kind, form):
    """All norms in one all-reduce; a paged LAMB has one for each page, see `docs/meshes.md`."""
    found = dict(facts_for("h200")[f"{name}/8 {kind}/{form}"]["facts"]["collectives"])
    if "lion" in name:
        assert found == {}
    elif name.startswith("paged"):
        assert found.keys() == {"all-reduce"} and found["all-reduce"] <= 3
    else:
        assert found == {"all-reduce": 1}


@by_case
def test_state_is_divided_and_written_in_place(facts_for, name, kind, form):
    facts = facts_for("h200")[f"{name}/8 {kind}/{form}"]["facts"]
    params, state = shard_bytes(name)
    on_host = facts["host"]["arguments"]
    assert facts["alias"] + facts["host"]["alias"] == params + state
    assert facts["arguments"] + on_host == 2 * params + state  # and the gradients
    assert (on_host > state / 2) == name.startswith("paged")
    assert facts["host"]["temp"] == 0 and not facts["host_compute"]


@each(["{name}/8 {kind}/apply_fused"], {"name": meshes.NAMES, "kind": meshes.KINDS})
def test_nothing_is_copied(facts_for, name, kind):
    """But scales of the smallest leaf, what a stream moves, and partial sums of LAMB's norms."""
    facts = facts_for("h200")[f"{name}/8 {kind}/apply_fused"]["facts"]
    found = [x for x in copies(facts, 256) if not x["name"].startswith(STARTS)]
    # They are put into one array of all leaves, two for each tile.
    sums = [x for x in found if "lamb" in name and all(r.endswith(",2]") for r in x["results"])]
    assert found == sums
    if not name.startswith("paged") and "8bit" in name:
        assert facts["temp"] < 2**16


@each(
    ["{name}/8 {kind}/apply_fused"],
    {
        "name, kernels": [
            ("lion8bit", ("lion_step",)),
            ("lamb8bit", ("lamb_moments", "lamb_apply")),
        ],
        "kind": meshes.KINDS,
    },
)
def test_kernels_work_on_shards(facts_for, name, kernels, kind):
    facts = facts_for("h200")[f"{name}/8 {kind}/apply_fused"]["facts"]
    launched = [x for x in facts["launches"] if x["kind"] == "mosaic"]
    sizes = meshes.shard_sizes(meshes.IN_KERNELS)
    for kernel in kernels:
        here = [x for x in launched if x["name"] == kernel]
        assert len(here) == len(sizes)
        # Parameters in bfloat16 and codes are written; scales and sums are a few percent more.
        each = {"lion_step": 3, "lamb_moments": 2, "lamb_apply": 2}[kernel]
        writes = sorted(x["writes"] for x in here)
        for written, n in zip(writes, sorted(sizes.values()), strict=True):
            assert each * n <= written <= 1.06 * each * n


@by_kind("lion8bit/8 {kind}/by name", "lion8bit/8 {kind}/apply_fused")
def test_kernels_by_name_are_those_that_none_takes(facts_for, kind):
    named, chosen = (
        [x["name"] for x in facts_for("h200")[f"lion8bit/8 {kind}/{form}"]["facts"]["launches"]]
        for form in ("by name", "apply_fused")
    )
    assert named.count("lion_step") == chosen.count("lion_step") == len(meshes.IN_KERNELS)


@by_kind("paged_lion8bit/8 {kind}/apply_fused")
def test_pages_are_of_shards(facts_for, kind):
    """A shard is cut where it has to be, and every byte of it goes in and out once."""
    facts = facts_for("h200")[f"paged_lion8bit/8 {kind}/apply_fused"]["facts"]
    bytes_moved = moved(facts["transfers"])
    assert bytes_moved["in"] == bytes_moved["out"] == facts["host"]["arguments"]
    assert facts["temp"] <= 3 * 2**20


@by_kind("paged_lion8bit/8 {kind}/init")
def test_a_fresh_state_is_made_in_shards(facts_for, kind):
    facts = facts_for("h200")[f"paged_lion8bit/8 {kind}/init"]["facts"]
    _, state = shard_bytes("paged_lion8bit")
    assert facts["collectives"] == {} and not facts["host_compute"]
    on_device = state - facts["host"]["outputs"]
    # The smaller leaves, with a pointer for every result.
    assert on_device < facts["outputs"] <= on_device + 8 * 16
    # One leaf after the other goes to the host.
    assert facts["temp"] <= 1.01 * max(meshes.shard_sizes().values())


@by_kind("lamb8bit/8 {kind}/stacked")
def test_norms_of_layers_share_the_all_reduce(facts_for, kind):
    facts = facts_for("h200")[f"lamb8bit/8 {kind}/stacked"]["facts"]
    assert facts["collectives"] == {"all-reduce": 1}
    assert sum(x["name"] == "lamb_apply" for x in facts["launches"]) == len(meshes.IN_KERNELS)
