"""Fixtures of the command line's tests."""

import jax
import pytest

from optax_lamblion.cli import main


@pytest.fixture(autouse=True)
def _no_width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # tables in a pipe have no width then


@pytest.fixture(autouse=True)
def _usual_promotion():
    # The demo is a user's program: it runs Flax and `optax.lamb`, which promote like NumPy.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def run_cli(capsys):
    """Runs the command line in this process: `(exit status, stdout, stderr)`."""

    def run(*arguments):
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # how a parser reports wrong usage
            status = stop.code
        return status, *capsys.readouterr()

    return run
