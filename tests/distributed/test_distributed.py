"""Processes that share a mesh train as one process does, and go on where others were killed.

Losses are equal bit for bit. The program is the same, for the same four devices; but where one
process adds up by XLA's own code, several do by Gloo, and may do so in another order. On a mesh of
2 x 2 each of its sums has two terms (gradients and losses over `data`, LAMB's norms over `fsdp`),
and a + b = b + a in floating point, too.
"""

import math

import pytest

from tests.distributed.processes import STEPS, Run
from tests.distributed.train import PARAMS, SAVE_EVERY
from tests.variants import VARIANTS

NAMES = ("lion8bit", "lion32bit", "lamb8bit", "paged_lion8bit", "paged_lamb8bit")
ROWS = {v.name: v for v in VARIANTS if v.name in NAMES}
OVER = ("--over", "data")
DIE_AT = 8
"""After two checkpoints, and before the third."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A function: the losses of a run by one process, which saves nothing, made once."""
    made = {}

    def losses(v, *more):
        if (v.name, *more) not in made:
            with Run(tmp_path_factory.mktemp("one") / "run", v.name, 1, *more) as run:
                run.wait()
            found = [record["loss"] for record in run.records()]
            assert len(set(found)) == len(found) == STEPS, "not all of its steps change something"
            made[v.name, *more] = found
        return made[v.name, *more]

    return losses


def every(*counts, quick):
    """Parametrizes over optimizers and numbers of processes; all but one pair are slow."""
    rows = [(name, count) for name in NAMES for count in counts]
    marks = {pair: () if pair == quick else pytest.mark.long for pair in rows}
    rows = [
        pytest.param(ROWS[name], count, marks=marks[name, count], id=f"{name}-{count}")
        for name, count in rows
    ]
    return pytest.mark.parametrize(("v", "processes"), rows)


def check(run, v, first, expected, parts=2):
    """Of the steps from this one on, losses and where the state was after each of them."""
    records = run.records()
    steps = range(first, first + len(records))
    assert [(x["step"], x["loss"]) for x in records] == [(i, expected[i]) for i in steps]
    large = len(v.slots) * sum(math.prod(shape) for shape, _ in PARAMS.values() if len(shape) > 1)
    shards = large * (1 + 4 / 256 if v.bits == 8 else 4) / parts  # codes and their scales
    small = len(v.slots) * 100 * 4 + 4  # at most: moments and a scale of the bias, and the count
    for x in records:
        assert 0 <= x["device"] + x["host"] - shards <= small
        assert x["host"] == (shards if v.paged else 0)


@every(2, 4, quick=("lion8bit", 2))
def test_processes_train_as_one_does(v, processes, undisturbed, tmp_path):
    expected = undisturbed(v)
    with Run(tmp_path / "run", v.name, processes) as run:
        run.wait()
    check(run, v, 0, expected)
    assert len(run.records()) == STEPS


@every(1, 4, quick=("lamb8bit", 1))
def test_a_killed_run_goes_on_with_another_number_of_processes(v, processes, undisturbed, tmp_path):
    goes_on(v, processes, undisturbed(v), tmp_path)


# Not of LAMB, whose norms then are sums of four terms.
@pytest.mark.long
@pytest.mark.parametrize("name", ["lion8bit", "paged_lion8bit"])
def test_a_killed_run_goes_on_if_its_state_is_divided_over_data_too(name, undisturbed, tmp_path):
    expected = undisturbed(ROWS[name], *OVER)
    goes_on(ROWS[name], 4, expected, tmp_path, *OVER, parts=4)


def goes_on(v, processes, expected, tmp_path, *more, parts=2):
    """Checks that a run of two processes, one of which dies, is completed by so many others."""
    folder = tmp_path / "checkpoints"
    more = ("--folder", folder, *more)
    with Run(tmp_path / "killed", v.name, 2, *more, "--die-at", DIE_AT) as killed:
        killed.wait_for_death()
    check(killed, v, 0, expected, parts)
    # The one that died did not wait for the other to write the last losses, nor for Orbax to give
    # the last checkpoint its name.
    made = len(killed.records())
    saved = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    assert SAVE_EVERY <= saved <= made <= DIE_AT
    with Run(tmp_path / "restarted", v.name, processes, *more) as restarted:
        restarted.wait()
    check(restarted, v, saved, expected, parts)
    assert saved + len(restarted.records()) == STEPS
