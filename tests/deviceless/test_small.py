"""Launches of whole steps: small leaves share theirs, and no large leaf is copied for it."""

import math

import pytest

from optax_lamblion.demo import shapes
from pallas_kernels.tiled.rows import TILE
from tests.deviceless import hlo, models, sharing, small, worker
from tests.deviceless.compiling import copies, mosaic_kernels
from tests.deviceless.daily import each

pytestmark = pytest.mark.deviceless

SMALL = {"lion8bit": 8, "adamw8bit": 11, "lamb8bit": 19}
"""The most launches for 98 small leaves. Those of one array for every dtype, of which XLA makes 128
at most in one launch; of results, up to 96 arrays of one shape in one launch; the count's, and
scalars'. For LAMB also the norms of every shape."""

GPT2 = {"lion8bit": 63, "adamw8bit": 70, "lamb8bit": 136}
"""The most launches for GPT-2. A kernel, or for LAMB two, for each of 50 large leaves; those of the
small ones; and 5, 7 and 12 for the last three blocks of the embedding, which fill no tile."""


BY_OPTIMIZER = each([small.case_name("{optimizer}")], {"optimizer": small.OPTIMIZERS})


@BY_OPTIMIZER
def test_small_leaves_share_launches(facts_for, optimizer):
    facts = facts_for("h200")[small.case_name(optimizer)]["facts"]
    assert len(facts["launches"]) <= SMALL[optimizer]


@BY_OPTIMIZER
def test_they_are_written_in_place(facts_for, optimizer):
    facts = facts_for("h200")[small.case_name(optimizer)]["facts"]
    assert facts["outputs"] - facts["alias"] < 100 * 1024  # the table of results
    assert facts["temp"] < 3 * facts["arguments"]


def _long_but(optimizer):
    marks = () if optimizer == "lion8bit" else pytest.mark.long
    return pytest.param(optimizer, marks=marks)


@pytest.mark.parametrize("optimizer", [_long_but(x) for x in models.OPTIMIZERS])
def test_gpt2(optimizer):
    sharing.need_compilers()
    name = models.case_name("gpt2-124m", None, optimizer, "apply_fused")
    facts = worker.results("h200", [name])[name]["facts"]
    assert len(facts["launches"]) <= GPT2[optimizer]
    assert len(mosaic_kernels(facts)) == 50 * (2 if optimizer == "lamb8bit" else 1)
    sizes = {math.prod(shape) for shape in shapes.MODELS["gpt2-124m"]().values()}
    results = [text for launch in copies(facts) for text in launch["results"]]
    copied = {math.prod(x.shape) for text in results for x in hlo.arrays(text)}
    # The last three scales of the embedding are written by what looks like a copy: in place.
    assert not copied & {size for size in sizes if size >= TILE}
    assert facts["temp"] < 4 * 2**20
