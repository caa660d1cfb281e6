import subprocess
import sys

import pytest

from optax_lamblion.cli import _errors

# Stands in for a machine without the extra: whatever imports one of these fails.
WITHOUT_EXTRA = """
import sys
for name in ("flax", "rich", "matplotlib", "sklearn"):
    sys.modules[name] = None
from importlib import util
found = util.find_spec
util.find_spec = lambda name: None if sys.modules.get(name, 0) is None else found(name)
from optax_lamblion.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_extra(*arguments):
    command = [sys.executable, "-c", WITHOUT_EXTRA, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("arguments", [["info"], ["memory", "--params", "1e6"]])
def test_commands_work_without_the_extra(arguments):
    done = without_extra(*arguments)
    assert done.returncode == 0, done.stderr
    assert "lamb8bit" in done.stdout


def test_train_without_the_extra_says_what_to_install():
    done = without_extra("train")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install flax rich matplotlib scikit-learn" in done.stderr


def test_help_lists_the_commands(run_cli):
    status, out, _ = run_cli("--help")
    assert status == 0
    assert all(name in out for name in ("train", "memory", "info", "bench"))


@pytest.mark.parametrize("command", ["train", "memory", "info", "bench"])
def test_every_command_has_help(run_cli, command):
    status, out, _ = run_cli(command, "--help")
    assert status == 0
    assert f"optax-lamblion {command}" in out


@pytest.mark.parametrize("arguments", [[], ["fly"], ["info", "--nonsense"]])
def test_wrong_usage_exits_with_2(run_cli, arguments):
    status, _, err = run_cli(*arguments)
    assert status == 2
    assert "usage: optax-lamblion" in err


def test_ctrl_c_anywhere_ends_without_a_traceback(run_cli, monkeypatch):
    from optax_lamblion.cli import _info

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(_info, "versions", interrupt)
    status, _, err = run_cli("info")
    assert (status, err) == (130, "Stopped.\n")


def test_only_value_errors_become_input_errors():
    with pytest.raises(_errors.CommandError, match="too long"), _errors.input_errors():
        raise ValueError("too long")
    with pytest.raises(TypeError), _errors.input_errors():
        raise TypeError
