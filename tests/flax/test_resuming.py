"""A run that is stopped and resumed in another process ends with the bits of one that is not."""

import subprocess
import sys

import numpy as np
import pytest

from tests.distributed.processes import ROOT, environment
from tests.flax.resume import APIS, LIBRARIES, OPTIMIZERS


def run(devices, folder, what):
    command = [sys.executable, "-W", "error", "-m", "tests.flax.resume", str(folder), what]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment() | {"JAX_NUM_CPU_DEVICES": str(devices)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=[1, 8], ids=lambda x: f"{x}_devices")
def ended(request, tmp_path_factory):
    """The folder with what runs ended with: those in one, and those of two processes."""
    folder = tmp_path_factory.mktemp("runs")
    run(request.param, folder, "save")
    run(request.param, folder, "restore")
    return request.param, folder


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("where", OPTIMIZERS)
@pytest.mark.parametrize("api", APIS)
def test_training_resumes_bit_for_bit(ended, api, where, library):
    devices, folder = ended
    in_one = np.load(folder / f"{api}-{where}.npz")
    in_two = np.load(folder / f"{api}-{where}-{library}.npz")
    assert in_one.files == in_two.files and len(in_one.files) > 10
    for name in in_one.files:
        np.testing.assert_array_equal(in_one[name], in_two[name], err_msg=name)
    memory = "pinned_host" if where == "paged" else "device"
    assert f"{devices} {memory}" in in_one["kinds"]
