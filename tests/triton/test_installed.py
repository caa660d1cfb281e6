"""Where jax-triton is not installed, or is not what it should be; and what importing it leaves."""

import os
import re
import subprocess
import sys
import textwrap
import tomllib
import types
from pathlib import Path

import pytest

import pallas_kernels
from optax_lamblion import StateOptions, lion8bit
from pallas_kernels.triton import installed
from tests.kernels.codec_judge import sample
from tests.kernels.test_dispatch import machine  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _asked_anew():
    """What is known of this environment is worked out again, now and after a test."""
    known = installed.why_not, installed.jax_triton
    for function in known:
        function.cache_clear()
    yield
    for function in known:
        function.cache_clear()


def run(script, **environment):
    """The last line that a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture
def versions(monkeypatch):
    """A function that says which versions are installed, by distribution."""

    def pretend(**names):
        names = {name.replace("_", "-"): version for name, version in names.items()}

        def version(name):
            if names.get(name, "another name") == "another name":
                raise installed.importlib.metadata.PackageNotFoundError(name)
            return names[name]

        monkeypatch.setattr(installed, "_is_there", lambda name: name in names)
        monkeypatch.setattr(installed.importlib.metadata, "version", version)

    return pretend


def test_without_it_everything_else_runs():
    script = """
        import sys
        sys.modules["jax_triton"] = sys.modules["triton"] = None
        import jax, jax.numpy as jnp, optax_lamblion, pallas_kernels
        from optax_lamblion import StateOptions, apply_fused, lion8bit
        p = {"w": jnp.ones((64, 256))}
        for name in (None, "xla"):
            tx = lion8bit(1e-3, options=StateOptions(implementation=name))
            p, _ = jax.jit(lambda p, g: apply_fused(tx, p, g, tx.init(p)))(p, p)
        try:
            lion8bit(1e-3, options=StateOptions(implementation="triton"))
        except ValueError as error:
            print(error)
    """
    said = run(script)
    assert said.startswith('`implementation="triton"` cannot run this optimizer: ')
    assert f"jax-triton and triton are not installed ({installed.COMMAND})" in said


def test_nothing_imports_it_before_it_is_asked_for():
    script = """
        import sys, jax, jax.numpy as jnp
        from optax_lamblion import StateOptions, apply_fused, lion8bit
        import optax_lamblion, pallas_kernels
        from optax_lamblion.cli import main
        p = {"w": jnp.ones((64, 256))}
        for name in (None, "xla", "mosaic"):
            tx = lion8bit(1e-3, options=StateOptions(implementation=name))
            jax.make_jaxpr(lambda p: apply_fused(tx, p, p, tx.init(p)))(p)
        main(["info"])
        print([name for name in sys.modules if name.split(".")[0] in ("triton", "jax_triton")])
    """
    assert run(script) == "[]"


@pytest.mark.parametrize(
    "here, why",
    [
        (dict(jax_triton="0.4.1", triton="3.9.0"), None),
        (dict(jax_triton="0.10.0", triton="3.10.0"), None),
        (dict(jax_triton="0.4.1", triton="another name"), None),
        (dict(jax_triton="0.4.1.dev2", triton="3.7.0+git1234"), None),
        ({}, "jax-triton and triton are not installed"),
        (dict(triton="3.9.0"), "jax-triton is not installed"),
        (dict(jax_triton="0.3.0", triton="3.9.0"), "jax-triton 0.3.0 is older than 0.4.1"),
        (
            dict(jax_triton="0.3.0", triton="3.5.1"),
            "jax-triton 0.3.0 is older than 0.4.1 and triton 3.5.1 is older than 3.7",
        ),
    ],
)
def test_versions_that_do_not_work_are_named_without_an_import(versions, here, why):
    versions(**here)
    assert installed.why_not() == (why and f"{why} ({installed.COMMAND})")


def test_the_command_is_that_of_the_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = [f"{name}>={version}" for name, version in installed.OLDEST.items()]
    assert project["optional-dependencies"]["triton"] == oldest
    # What it does not name comes with what it names.
    assert installed.COMMAND == f"pip install '{oldest[0]}'"


def test_quantize_by_name_says_it_too(monkeypatch, machine):  # noqa: F811
    machine(types.SimpleNamespace(platform="cuda", compute_capability="9.0", device_kind="H200"))
    why = f"jax-triton is not installed ({installed.COMMAND})"
    monkeypatch.setattr(installed, "why_not", lambda: why)
    for function, arrays in (
        (pallas_kernels.quantize, (sample((9001,)),)),
        (pallas_kernels.dequantize, pallas_kernels.quantize(sample((9001,)))),
    ):
        with pytest.raises(ValueError, match=re.escape(why)):
            function(*arrays, implementation="triton")


def broken(monkeypatch, tmp_path, text):
    (tmp_path / "jax_triton.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "jax_triton", raising=False)


def test_one_that_cannot_be_imported_says_what_goes_together(monkeypatch, tmp_path, versions):
    versions(jax_triton="0.4.1", triton="4.0.0")
    broken(monkeypatch, tmp_path, "raise AttributeError('no such thing')")
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    words = r"jax-triton 0.4.1 with Triton 4.0.0 cannot be imported \(AttributeError: no such thing"
    with pytest.raises(ImportError, match=f'{words}.*pip install.*"xla"'):
        installed.jax_triton()
    assert os.environ["TRITON_CACHE_DIR"] == "mine"


@pytest.mark.parametrize("mine", ["mine", None])
def test_the_variable_of_the_cache_stays_as_it_was(monkeypatch, tmp_path, mine):
    broken(monkeypatch, tmp_path, "import os; os.environ.pop('TRITON_CACHE_DIR', None)")
    monkeypatch.setattr(installed, "_mend_elimination", lambda: None)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    if mine:
        monkeypatch.setenv("TRITON_CACHE_DIR", mine)
    assert installed.jax_triton().__name__ == "jax_triton"
    assert os.environ.get("TRITON_CACHE_DIR") == mine


def _of_two(used, equation):
    pass


def _of_three(used, live, equation):
    pass


@pytest.mark.parametrize("theirs, mended", [(_of_two, True), (_of_three, False)])
def test_elimination_is_mended_only_where_it_is_broken(monkeypatch, theirs, mended):
    from jax._src.interpreters import partial_eval

    lib = types.SimpleNamespace(triton_kernel_call_p=object())
    fake = types.SimpleNamespace(triton_lib=lib)
    monkeypatch.setitem(sys.modules, "jax_triton", fake)
    monkeypatch.setitem(sys.modules, "jax_triton.triton_lib", lib)
    monkeypatch.setattr(partial_eval, "_default_dce_rule", _of_three)
    monkeypatch.setattr(partial_eval, "dce_rules", {lib.triton_kernel_call_p: theirs})
    installed._mend_elimination()
    rule = partial_eval.dce_rules[lib.triton_kernel_call_p]
    assert (rule is not theirs) == mended
    if mended:
        equation = types.SimpleNamespace(invars=[1, 2])
        assert rule([False], None, equation) == ([True, True], equation)


@pytest.mark.deviceless
def test_importing_it_leaves_everything_as_it_was(tmp_path):
    """The environment, paths, filters of warnings, settings of JAX; and no backend is started."""
    script = """
        import os, sys, warnings, jax
        from pallas_kernels.triton import installed
        from jax._src import xla_bridge

        def state():
            return dict(os.environ), [*sys.path], [*warnings.filters], dict(jax.config.values)

        before = state()
        assert installed.why_not() is None, installed.why_not()
        assert installed.jax_triton().triton_call
        import pallas_kernels.triton.functions
        for one, other in zip(before, state()):
            assert one == other, (one, other)
        assert not xla_bridge._backends
        print("as before")
    """
    settings = dict(HOME=str(tmp_path), TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert run(script, **settings) == "as before"
    assert not [*tmp_path.iterdir()]


@pytest.mark.deviceless
def test_what_is_installed_is_new_enough():
    assert installed.why_not() is None
    tx = lion8bit(1e-3, options=StateOptions(implementation="triton"))
    assert tx.init({"w": pallas_kernels.quantize(sample((9001,)))[1]})
