"""What a step of a model that is divided over 64 GPUs does on each of them, and what it does not.

The first two layers of Llama 3 8B, with the embedding and the head. `at_scale` compiles them in a
process of its own, because Mosaic looks where to write when JAX is imported.
"""

import collections
import fcntl
import json
import math
import pathlib
import subprocess
import sys

import pytest

from tests.deviceless import at_scale
from tests.deviceless.compiling import scalar_bytes

pytestmark = pytest.mark.deviceless

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEVICES, LAYERS = 64, 2
WIDTH, HIDDEN, KEYS, VOCABULARY = 4096, 14336, 1024, 128256
# Of one device: of matrices a 64th, of vectors all.
SHARDS = collections.Counter(
    {
        WIDTH * WIDTH // DEVICES: 2 * LAYERS,
        WIDTH * KEYS // DEVICES: 2 * LAYERS,
        WIDTH * HIDDEN // DEVICES: 3 * LAYERS,
        WIDTH * VOCABULARY // DEVICES: 2,
        WIDTH: 2 * LAYERS + 1,
    }
)
LEAVES = sum(SHARDS.values())
ELEMENTS = sum(size * count for size, count in SHARDS.items())
SLOTS = {"lion8bit": 1, "lamb8bit": 2}
KERNELS = {"lion8bit": ["lion_step"], "lamb8bit": ["lamb_moments", "lamb_apply"]}
# A float32 scale for 256 codes; the gradient, parameters and codes twice; and for LAMB parameters
# and codes again.
STATE = 1 + 4 / 256
MOVED = {"lion8bit": 3 * 2 + 2 * STATE, "lamb8bit": 3 * 2 + 4 * STATE + 2 + 2 * STATE}
# LAMB's kernels leave three sums for each tile. Two of them are gathered from all leaves, with room
# for 128 tiles more of each, and read again.
TILE, ROOM = 2048, 128
SUMS = {"lion8bit": 0, "lamb8bit": (12 + 12 + 3 * 8) / TILE}
GATHERED = {"lion8bit": 0, "lamb8bit": 8 * (ELEMENTS // TILE + ROOM * LEAVES)}


@pytest.fixture(scope="module")
def costs(request, facts_for, tmp_path_factory):
    """`sharded.cost` by optimizer. `facts_for` is here to say whether there are compilers."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # pytest-xdist: every process has a folder in this
        folder = folder.parent
    path = folder / "at_scale.json"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            # A warning would be one of shards that cut blocks.
            command = [sys.executable, "-W", "error", "-m", "tests.deviceless.at_scale"]
            command += ["--models", "8b", "--layers", str(LAYERS), "--devices", str(DEVICES)]
            command += ["--optimizers", *SLOTS, "--out", path]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert not done.returncode, done.stderr[-6000:]
    return {row["optimizer"]: row for row in json.loads(path.read_text())}


def test_lion_needs_no_other_device(costs):
    assert costs["lion8bit"]["collectives"] == {}


def test_lamb_needs_one_sum_of_two_norms_for_every_leaf(costs):
    assert costs["lamb8bit"]["collectives"] == {"all-reduce": [1, LEAVES * 2 * 4]}


@pytest.mark.parametrize("name", SLOTS)
def test_kernels_step_the_shard_of_every_leaf(costs, name):
    shards = {str(size): count for size, count in SHARDS.items()}
    assert costs[name]["kernels"] == dict.fromkeys(KERNELS[name], shards)


@pytest.mark.parametrize("name", SLOTS)
def test_a_device_has_its_part_of_the_state(costs, name):
    assert costs[name]["parameters"] == ELEMENTS
    assert costs[name]["state_bytes"] == scalar_bytes(name) + SLOTS[name] * STATE * ELEMENTS


@pytest.mark.parametrize("name", SLOTS)
def test_parameters_and_state_are_written_in_place(costs, name):
    cost = costs[name]
    assert cost["arguments"] == cost["state_bytes"] + 2 * cost["parameter_bytes"]
    assert cost["alias"] == cost["state_bytes"] + cost["parameter_bytes"]
    assert cost["largest_copy"] <= GATHERED[name]
    sums = 12 * ELEMENTS / TILE * bool(SUMS[name])
    assert cost["temp"] < sums + GATHERED[name] + 1024 * LEAVES  # and scalars


@pytest.mark.parametrize("name", SLOTS)
def test_a_device_moves_the_bytes_of_its_shards(costs, name):
    assert costs[name]["ideal"] == pytest.approx(MOVED[name] * ELEMENTS, rel=1e-6)
    most = 1 + SUMS[name] / MOVED[name] + 2e-4  # scalars
    assert 1 <= costs[name]["moved"] / costs[name]["ideal"] < most


def test_models_have_as_many_parameters_as_published():
    from tests.deviceless import sharded

    sizes = {
        name: sum(map(math.prod, model.shapes().values())) for name, model in sharded.MODELS.items()
    }
    assert sizes == {"8b": 8_030_261_248, "70b": 70_553_706_496}


def test_an_estimate_adds_what_layers_add():
    def part(layers):
        return {"moved": 7000 + 1000 * layers, "kernels": {"lion_step": {"4096": 1 + layers}}}

    assert at_scale.estimate(80, *map(part, at_scale.PARTS)) == part(80)


@pytest.mark.parametrize("key", ["moved", "state_bytes"])
def test_an_estimate_is_refused_where_layers_differ(key):
    with pytest.raises(ValueError, match=f"{key}.*: 1000, 2000, 3100"):
        at_scale.estimate(80, {key: 1000}, {key: 2000}, {key: 3100})
