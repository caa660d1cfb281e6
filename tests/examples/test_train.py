"""The script in docs/examples trains, and resumes as if it had not been killed."""

import re
import subprocess
import sys

import pytest

from tests.test_docs import DOCS

STEPS, EVERY = 200, 50


def start(folder, dtype):
    """The script in a process of its own."""
    command = [sys.executable, DOCS / "examples/train.py", f"--folder={folder}", f"--dtype={dtype}"]
    command += [f"--steps={STEPS}", f"--every={EVERY}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """What it prints until it ends well."""
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    return out


def losses(out):
    return {int(n): float(x) for n, x in re.findall(r"^step (\d+)  loss (\S+)", out, re.MULTILINE)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_is_killed_resumes_bit_for_bit(dtype, tmp_path):
    whole = finish(start(tmp_path / "whole", dtype))
    # It is log(64) = 4.16 at the start, and 1.26 at best: a quarter of the targets are noise.
    assert losses(whole)[STEPS] < 2.0

    process = start(tmp_path / "killed", dtype)
    # A checkpoint is complete once its folder has its final name.
    while not (tmp_path / "killed" / str(2 * EVERY)).exists():
        assert process.poll() is None, process.stderr.read()
    process.kill()
    out, _ = process.communicate()
    assert "final" not in out

    resumed = finish(start(tmp_path / "killed", dtype))
    began = int(re.search(r"^resumed at step (\d+)", resumed, re.MULTILINE)[1])
    assert 2 * EVERY <= began < STEPS
    # Nine digits tell float32 numbers apart.
    (expected,) = re.findall(r"^final loss (\S+)", whole, re.MULTILINE)
    assert re.findall(r"^final loss (\S+)", resumed, re.MULTILINE) == [expected]
