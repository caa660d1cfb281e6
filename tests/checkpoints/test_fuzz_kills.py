"""A run that is killed at any moment goes on, and has lost no more than the save under way."""

import random
import subprocess
import sys
import time

import pytest

from tests import fuzzing
from tests.checkpoints import killed
from tests.optimizers import problem


def kill_one(folder, name, seconds):
    """Runs until some saves and so many seconds later. Returns the last one that had finished."""
    command = [sys.executable, "-m", "tests.checkpoints.killed", str(folder), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        first = [run.stdout.readline() for _ in range(2)]
        time.sleep(seconds)
        run.kill()
        return [int(line) for line in first + run.stdout.readlines() if line.endswith("\n")][-1]


@pytest.mark.parametrize("name", killed.OPTIMIZERS)
def test_a_killed_run_loses_the_save_under_way_at_most(name, tmp_path):
    tx = killed.OPTIMIZERS[name]
    step, number, p, state = killed.stepped(tx), -1, killed.PARAMS, tx.init(killed.PARAMS)
    for seed in fuzzing.seeds(2):
        finished = kill_one(tmp_path, name, random.Random(seed).uniform(0, 0.5))
        with killed.open_manager(tmp_path) as manager:
            latest, *found = killed.restored(manager, tx)
        assert latest >= finished > number
        while number < latest:  # the same steps without a break
            number += 1
            p, state = step(p, state, number)
        problem.assert_equal(tuple(found), (p, state))
