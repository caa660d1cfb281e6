"""What `./dev` does before a command runs: which Python, which environment, and when again.

A copy of the script runs with a `uv` that writes down what it is asked for and installs nothing.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEV = ROOT / "dev"
SYSTEM = "/usr/bin:/bin"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="dev is for bash")

# The Python that environments are made with, and the one in them. It answers questions about
# itself; of modules it says that they ran, or does what they would have done.
PYTHON = f"""#!/bin/sh
for last; do :; done
case "$*" in
  "-m pip config list") cat "$HOME/settings" 2>/dev/null ;;
  "-m pip install"*) [ "${{FETCHES-}}" ] && mkdir "$8/bin" && cp "$FETCHES" "$8/bin/uv" ;;
  "-I -m pip install"*) echo "$*" >>"$CALLS" ;;
  "-m venv"*) mkdir -p "$last/bin" && cp "$HOME/python" "$last/bin/python" ;;
  *"-m optax_lamblion"* | "-m "*) echo "ran $*" ;;
  *) exec "{sys.executable}" "$@" ;;
esac
"""

UV = """#!/bin/sh
echo "$*" >>"$CALLS"
env | grep -E '^(UV_|SSL_CERT_FILE)' >>"$CALLS.settings"
for last; do :; done
case "$1" in
  venv) mkdir -p "$last/bin" && rm -f "$last/.ready" && cp "$HOME/python" "$last/bin/python" ;;
  pip) sleep "${SLOW:-0}"; exit "${FAILS:-0}" ;;
esac
"""


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Checkout:
    """A copy of what `./dev` reads, in a folder with a space, and a home with one good Python."""

    def __init__(self, folder):
        self.root, self.home, self.calls = folder / "a checkout", folder / "home", folder / "calls"
        (self.root / "optax_lamblion").mkdir(parents=True)
        for name in ("dev", "pyproject.toml", "optax_lamblion/__init__.py"):
            shutil.copy(ROOT / name, self.root / name)
        self.python = script(self.home / "python", PYTHON)
        self.uv = script(self.home / "bin/uv", UV)

    def start(self, *arguments, **variables):
        environment = {
            "HOME": str(self.home),
            "PATH": f"{self.home / 'bin'}:{SYSTEM}",
            "CALLS": str(self.calls),
            "PYTHON": str(self.python),
            "OPTAX_LAMBLION_DEVICE": "cpu",
        }
        return subprocess.Popen(
            [str(self.root / "dev"), *arguments],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments, **variables):
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def asked(self):
        """What uv or pip was asked for since the last time, as lines."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines

    def installations(self):
        lines = (line for line in self.asked() if "pip install" in line)
        return [line.split("--quiet ")[1] for line in lines]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


# --- Words ---------------------------------------------------------------------------------------


def test_help_lists_every_command(checkout):
    status, out, _ = checkout.run("help")
    arms = re.findall(
        r"^    ([a-z |]+)\) ", DEV.read_text().split("case $name in")[1], re.MULTILINE
    )
    commands = {name for arm in arms for name in arm.split(" | ")} - {"help"}
    listed = set(re.findall(r"^  ([a-z]+)  ", out, re.MULTILINE))
    assert status == 0
    assert len(commands) > 10
    assert listed == commands


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "words"),
    [
        (["tset"], {}, 2, "no command `tset`"),
        (["test"], {"JAX_VERSION": "new"}, 1, "JAX_VERSION=new is not a version"),
        (["info"], {"OPTAX_LAMBLION_DEVICE": "tpu"}, 1, "use cpu or gpu"),
        (["fuzz", "--minutes", "ten"], {}, 1, "`--minutes ten` is not a number"),
        (["fuzz", "--minutes"], {}, 1, "is not a number"),
        (["info"], {"PYTHON": "/no/python"}, 1, "PYTHON=/no/python is not"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_installed(checkout, arguments, variables, status, words):
    code, _, err = checkout.run(*arguments, **variables)
    assert code == status
    assert words in err
    assert checkout.asked() == []


# --- Python --------------------------------------------------------------------------------------


def test_a_python_that_does_not_run_or_does_not_fit_is_passed_over(checkout):
    script(checkout.home / "bin/python3.14", "#!/bin/sh\necho 'pyenv: not found' >&2\nexit 127\n")
    script(checkout.home / "bin/python3.13", "#!/bin/sh\nexit 1\n")  # as if it were too old
    good = script(checkout.home / ".pyenv/versions/3.14.1/bin/python3.14", PYTHON)
    status, out, err = checkout.run("memory", "--params", "1", PYTHON="")
    assert (status, out) == (0, "ran -P -m optax_lamblion memory --params 1\n"), err
    venv = checkout.asked()[0]
    assert venv.startswith("venv")
    # A machine may have such a Python in /usr/bin, which is on PATH.
    assert f"--python {good}" in venv or "--python /usr/bin/python3.14" in venv


def test_a_python_that_is_too_old_is_refused_and_the_environment_stays(checkout):
    old = script(checkout.home / "old", "#!/bin/sh\n[ $1 = -V ] && echo Python 3.10.1 || exit 1\n")
    checkout.run("memory")
    checkout.asked()
    status, _, err = checkout.run("memory", PYTHON=str(old))
    assert status == 1
    assert f"PYTHON={old} is not a complete Python 3.12 or newer" in err
    assert checkout.run("memory")[0] == 0
    assert checkout.asked() == []


# --- When something is installed -----------------------------------------------------------------


def test_the_second_time_nothing_is_installed(checkout):
    assert checkout.run("memory")[0] == 0
    assert checkout.installations() == ["--editable .[cli]"]
    assert checkout.run("memory")[0] == 0
    assert checkout.asked() == []


def test_parts_are_added_and_stay(checkout):
    checkout.run("memory")
    checkout.run("convert")
    checkout.run("memory")
    assert checkout.installations() == ["--editable .[cli]", "--editable .[cli,orbax,safetensors]"]


def test_convert_brings_pytorch_only_to_write_a_file(checkout):
    (checkout.root / "here.pt").touch()
    checkout.run("convert", str(checkout.root / "here.pt"))
    checkout.run("convert", "in.safetensors", "out.pt")
    assert ["torch" in line for line in checkout.installations()] == [False, True]


@pytest.mark.parametrize("change", ["pyproject.toml", "version", "place"])
def test_a_checkout_that_changed_is_installed_again(checkout, change):
    checkout.run("memory")
    checkout.asked()
    if change == "pyproject.toml":
        project = checkout.root / change
        project.write_text(project.read_text() + "# changed\n")
    elif change == "version":
        (checkout.root / "optax_lamblion/__init__.py").write_text('__version__ = "99"\n')
    else:
        checkout.root = checkout.root.rename(checkout.root.with_name("elsewhere"))
    assert checkout.run("memory")[0] == 0
    assert [line.split()[0] for line in checkout.asked()] == ["pip"]  # into what is there


def test_what_failed_says_so_and_is_made_again(checkout):
    status, out, err = checkout.run("memory", FAILS="1")
    assert (status, out) == (1, "")
    assert "the installation failed" in err
    checkout.asked()
    assert checkout.run("memory")[0] == 0
    assert [line.split()[0] for line in checkout.asked()] == ["venv", "pip"]


def test_what_was_killed_is_made_again(checkout):
    process = checkout.start("memory", SLOW="60")
    while not checkout.calls.exists() or "pip install" not in checkout.calls.read_text():
        time.sleep(0.02)
        assert process.poll() is None
    os.killpg(process.pid, 9)
    process.communicate()
    checkout.asked()
    assert checkout.run("memory")[0] == 0
    assert any(line.startswith("venv --quiet --clear") for line in checkout.asked())


@pytest.mark.skipif(shutil.which("flock") is None, reason="without flock nobody waits")
def test_two_at_once_install_once(checkout):
    processes = [checkout.start("memory", SLOW="1") for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    errors = "".join(process.communicate()[1] for process in processes)
    assert "waiting for another ./dev" in errors
    assert checkout.installations() == ["--editable .[cli]"]


def test_environments_of_their_own(checkout):
    checkout.run("test", "-q", JAX_VERSION="0.11.2")
    checkout.run("peers", "-q", JAX_VERSION="0.11.2")
    assert checkout.installations() == ["--editable .[demo,tests] jax==0.11.2", "--group peers"]
    made = {path.name for path in checkout.root.glob(".venv*") if path.is_dir()}
    assert made == {".venv-jax0.11.2", ".venv-peers"}


# --- uv ------------------------------------------------------------------------------------------


def test_pip_fetches_uv_where_there_is_none(checkout):
    assert checkout.run("memory", PATH=SYSTEM, FETCHES=str(checkout.uv))[0] == 0
    assert checkout.installations() == ["--editable .[cli]"]
    assert sorted(path.name for path in (checkout.root / ".tools").iterdir()) == ["bin"]


def test_pip_installs_where_uv_cannot_be_fetched(checkout):
    assert checkout.run("memory", PATH=SYSTEM)[0] == 0
    assert checkout.installations() == ["--upgrade pip>=25.1", "--editable .[cli]"]


def test_settings_of_pip_reach_uv_unless_uv_has_its_own(checkout):
    settings = {
        "PIP_INDEX_URL": "https://example.org/simple?a=b",
        "PIP_EXTRA_INDEX_URL": "https://example.org/1\nhttps://example.org/2",
        "PIP_FIND_LINKS": "/a /b",
        "PIP_CERT": "/a/certificate",
    }
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        env={"HOME": str(checkout.home)} | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    (checkout.home / "settings").write_text(listed.stdout)
    assert checkout.run("memory", UV_FIND_LINKS="/of/uv")[0] == 0
    seen = Path(f"{checkout.calls}.settings").read_text().splitlines()
    assert {
        "UV_DEFAULT_INDEX=https://example.org/simple?a=b",
        "UV_INDEX=https://example.org/1 https://example.org/2",
        "UV_FIND_LINKS=/of/uv",
        "SSL_CERT_FILE=/a/certificate",
        "UV_INDEX_STRATEGY=unsafe-best-match",
    } <= set(seen)
