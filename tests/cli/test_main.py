import json
import subprocess
import sys
import textwrap

import pytest

import optax_lamblion
from optax_lamblion.cli import COMMANDS, _errors

# Stands in for a machine without the extra: whatever imports one of these fails.
WITHOUT_EXTRA = """
import sys
absent, *words = sys.argv[1:]
for name in absent.split(","):
    sys.modules[name] = None
from importlib import util
found = util.find_spec
util.find_spec = lambda name: None if sys.modules.get(name, 0) is None else found(name)
from optax_lamblion.cli import main
sys.exit(main(words))
"""


def without(absent, *arguments):
    command = [sys.executable, "-c", WITHOUT_EXTRA, absent, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("arguments", [[], ["info"], ["train", "--help"]])
@pytest.mark.parametrize("absent", ["cyclopts", "rich", "cyclopts,rich"])
def test_the_command_line_says_what_it_needs(absent, arguments):
    done = without(absent, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"pip install {absent.replace(',', ' ')}\n" in done.stderr


@pytest.mark.parametrize("arguments", [["info"], ["memory", "--params", "1e6"]])
def test_other_commands_work_without_what_train_needs(arguments):
    done = without("flax,matplotlib,sklearn", *arguments)
    assert done.returncode == 0, done.stderr
    assert "lamb8bit" in done.stdout


def test_train_says_what_it_needs():
    done = without("flax,matplotlib,sklearn", "train")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install flax matplotlib scikit-learn" in done.stderr


def test_help_lists_the_commands(run_cli):
    status, out, _ = run_cli("--help")
    assert status == 0
    assert all(name in out for name in COMMANDS)


def test_the_version_is_that_of_the_package(run_cli):
    assert run_cli("--version") == (0, f"{optax_lamblion.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run_cli, command):
    status, out, _ = run_cli(command, "--help")
    assert status == 0
    assert f"optax-lamblion {command}" in out


def test_every_option_has_help(run_cli):
    for command in COMMANDS:
        _, out, _ = run_cli(command, "--help")
        (*_, options) = out.partition("Parameters")
        lines = [line.strip("│ ").split() for line in options.splitlines() if "│ --" in line]
        assert lines and all(len(words) > 2 for words in lines), lines


def test_help_does_not_import_jax():
    program = """
        import sys
        from optax_lamblion.cli import COMMANDS, main
        for words in ([], ["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)):
            main(words)
        print([name for name in ("jax", "numpy", "optax", "flax") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_command_is_an_error_that_shows_the_help(run_cli):
    status, out, err = run_cli()
    assert (status, out) == (2, "")
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], 'Unknown command "fly"'),
        (["trian"], 'Did you mean "train"?'),
        (["info", "--nonsense"], "Unknown option: --nonsense"),
        (["memory", "--parms=7e9"], "Did you mean --params?"),
        (["bench", "--dtype", "bfloat61"], 'Did you mean "bfloat16"?'),
        (["bench", "--repeats", "few"], "--repeats"),
        (["bench", "--repeats"], "--repeats requires an argument"),
        (["train", "--optimizers", "adam8bit"], "Did you mean adamw8bit"),
        (["info", "more"], 'no place for the argument "more"'),
        (["convert"], "SOURCE"),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(run_cli, arguments, said):
    status, out, err = run_cli(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("optax-lamblion") and err.count("\n") == 1


@pytest.fixture
def config(tmp_path):
    """Writes a file for `--config`."""

    def write(text):
        path = tmp_path / "options.toml"
        path.write_text(text, encoding="utf-8")
        return "--config", str(path)

    return write


def test_options_come_from_a_file_and_the_command_line_wins(run_cli, config):
    given = config(
        '[memory]\nparams = "1e6"\noptimizer = ["lion8bit", "lamb8bit"]\njson = true\n'
        "[bench]\nrepeats = 3\n"
    )
    status, out, _ = run_cli("memory", *given)
    found = json.loads(out)
    assert (status, found["parameters"]) == (0, 10**6)
    assert [row["name"] for row in found["optimizers"]] == ["lion8bit", "lamb8bit"]
    _, out, _ = run_cli(*given, "memory", "--params=2e6", "--optimizer=lion")
    found = json.loads(out)
    assert found["parameters"] == 2 * 10**6
    assert [row["name"] for row in found["optimizers"]] == ["lion"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[memory]\nparms = "7e9"\n', "parms"),
        ('[memroy]\nparams = "7e9"\n', "'memroy'. Did you mean [memory]?"),
        ('params = "7e9"\n', "'params'"),
        ('memory = "7e9"\n', "memory"),
        ('[memory]\nparams = "7e9"\ndtype = "float31"\n', "float31"),
        ("[memory\n", "is not TOML"),
    ],
)
def test_a_file_with_a_mistake_is_refused_and_the_mistake_named(run_cli, config, text, said):
    status, out, err = run_cli("memory", *config(text))
    assert (status, out) == (2, "")
    assert said in err
    assert "options.toml" in err and err.count("\n") == 1


def test_a_file_that_is_not_there_is_named(run_cli, tmp_path):
    status, _, err = run_cli("info", "--config", tmp_path / "none.toml")
    assert status == 2
    assert "none.toml" in err


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
