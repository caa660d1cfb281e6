"""A hostile case through the command line, in this process, and what has to hold of it."""

import contextlib
import io
import os
import pathlib
import shutil
import time
from typing import NamedTuple

from optax_lamblion.cli import main
from tests.hostile import corpus


class Outcome(NamedTuple):
    """What came of a command line: its status and its words, in how long; what is there now."""

    status: int | str | None
    out: str
    err: str
    seconds: float
    files: set[str]


def run(case, folder):
    """Runs a case in a folder, which is empty."""
    corpus.write(case, folder)
    out, err, start = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(["convert", *case.words])
        except SystemExit as stop:  # argparse's way
            status = stop.code
    seconds = time.monotonic() - start
    return Outcome(status, out.getvalue(), err.getvalue(), seconds, _files(folder))


def check(case, outcome):
    """Raises `AssertionError` unless a command line was done, or refused in a line."""
    assert outcome.status in (0, 2), outcome.err
    said = outcome.out + outcome.err
    assert all(c.isprintable() or c == "\n" for c in said), repr(said)
    said.encode()  # no lone surrogates, which no terminal takes
    assert "Traceback" not in said
    assert outcome.seconds < 10
    if outcome.status == 2:
        line = outcome.err.splitlines()[-1]
        assert line.startswith("optax-lamblion convert: error: "), outcome.err
        assert len(outcome.err.splitlines()) == 1 or outcome.err.startswith("usage:"), outcome.err
        assert len(line) < 5000
        assert outcome.files == set(case.files), "something was left behind"
    else:
        assert outcome.err == ""


def remove(folder):
    """Takes a case away again."""
    shutil.rmtree(folder)


def _files(folder):
    return {
        pathlib.Path(where, name).relative_to(folder).as_posix()
        for where, _, names in os.walk(folder)
        for name in names
    }
