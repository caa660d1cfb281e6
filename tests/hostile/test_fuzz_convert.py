"""`convert` with whatever comes: it is done, or refused in a line, soon and without a trace.

`./dev fuzz` goes on with new seeds; a failure names its own. Put it back with
`FUZZ_SEED=... pytest tests/hostile`.
"""

import os
import resource
import sys

import jax.numpy as jnp
import pytest

from optax_lamblion import lion8bit
from tests import fuzzing
from tests.checkpoints import problem
from tests.hostile import corpus, running

P = {"w": jnp.ones((16, 64)), "b": jnp.ones(3)}


def seeds(usual):
    """Those of `fuzzing`, or the one that is to be looked at again."""
    return [int(os.environ["FUZZ_SEED"])] if "FUZZ_SEED" in os.environ else fuzzing.seeds(usual)


def go_through(make, usual, tmp_path):
    before = _peak()
    for i, seed in enumerate(seeds(usual)):
        case = make(seed)
        folder = tmp_path / str(i)
        folder.mkdir()
        try:
            running.check(case, running.run(case, folder))
        except Exception as error:
            error.add_note(f"FUZZ_SEED={seed}: {case.kind}, {case.words!r}, in {folder}")
            raise
        running.remove(folder)
    assert _peak() - before < 2**30


def _peak():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_files_and_command_lines(tmp_path):
    go_through(corpus.case, 120, tmp_path)


@pytest.fixture(scope="module")
def orbax(tmp_path_factory):
    """The files of a checkpoint of a Lion, by path."""
    folder = tmp_path_factory.mktemp("orbax") / "state"
    problem.save(folder, problem.filled(lion8bit(min_8bit_size=1000).init(P)))
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_folders_of_orbax(tmp_path, orbax):
    go_through(lambda seed: corpus.folder_case(seed, orbax), 6, tmp_path)


def test_a_seed_is_the_same_case_everywhere():
    assert [corpus.case(seed) for seed in range(30)] == [corpus.case(seed) for seed in range(30)]
    kinds = {corpus.case(seed).kind for seed in range(100)}
    assert len(kinds) == 6
