"""What is shipped, and who may import whom."""

import ast
import importlib
import importlib.metadata
import itertools
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import optax_lamblion

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("optax_lamblion", "pallas_kernels")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EXTRAS = (
    *("cli", "demo", "flax", "gpu", "notebooks"),
    *("orbax", "safetensors", "tests", "torch", "triton"),
)

DEFERRED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)  # their bodies run when called


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(lines):
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def relative(path):
    return path.relative_to(ROOT).as_posix()


def imports(path, at_import_time=False):
    """Absolute names of the modules that a file imports, as written, `from a import b` as `a.b`.

    `at_import_time` leaves out what only runs inside a function or under `TYPE_CHECKING`.
    """
    package = path.relative_to(ROOT).parent.parts
    found = []

    def visit(node):
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += [node.module] if node.module else []
            found.extend(".".join([*base, alias.name]) for alias in node.names)
        if at_import_time and isinstance(node, DEFERRED):
            return
        condition = ast.unparse(node.test) if isinstance(node, ast.If) else ""
        if at_import_time and "TYPE_CHECKING" in condition:
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(), str(path)))
    return found


def top_level(names):
    return {name.split(".")[0] for name in names}


def test_the_version_is_written_once(pyproject):
    assert "version" in pyproject["project"]["dynamic"]
    assert "version" not in pyproject["project"]
    source = pyproject["tool"]["hatch"]["version"]["path"]
    assert re.findall(r'^__version__ = "(.+)"$', (ROOT / source).read_text(), re.MULTILINE) == [
        optax_lamblion.__version__
    ]


def test_the_installed_version_is_the_source_version():
    try:
        installed = importlib.metadata.version("optax-lamblion")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("runs from the source tree, not installed")
    assert installed == optax_lamblion.__version__


def test_the_core_needs_only_jax_numpy_and_optax(pyproject):
    core = requirements(pyproject["project"]["dependencies"])
    assert set(core) == {"jax", "numpy", "optax"}
    assert core["jax"].specifier == Requirement("jax>=0.11.2").specifier


def test_every_extra_can_be_installed_by_name(pyproject):
    extras = pyproject["project"]["optional-dependencies"]
    assert tuple(sorted(extras)) == EXTRAS
    for extra, lines in extras.items():
        needed = requirements(lines)
        assert canonicalize_name(extra) == extra
        assert needed, f"extra {extra} is empty"
        # An extra may include another one of this package, not itself.
        own = needed.get("optax-lamblion")
        assert own is None or own.extras <= set(extras) - {extra}
    assert requirements(extras["gpu"])["jax"].extras == {"cuda13"}


def test_the_console_script_exists(pyproject):
    assert pyproject["project"]["scripts"] == {"optax-lamblion": "optax_lamblion.cli:main"}
    assert callable(importlib.import_module("optax_lamblion.cli").main)


def test_python_versions_agree(pyproject):
    assert pyproject["project"]["requires-python"] == ">=3.12"
    assert pyproject["tool"]["ruff"]["target-version"] == "py312"
    assert pyproject["tool"]["pyright"]["pythonVersion"] == "3.12"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed_and_shipped(pyproject, package):
    assert (ROOT / package / "py.typed").is_file()
    assert package in pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_imports_point_one_way():
    """notebooks, tests -> optax_lamblion -> pallas_kernels -> jax."""
    for path in SOURCES:
        above = {"tests", "notebooks"}
        if relative(path).startswith("pallas_kernels/"):
            above |= {"optax_lamblion", "optax", "flax"}
        assert not top_level(imports(path)) & above, relative(path)


IN_TRITON = "pallas_kernels/triton/functions.py"
"""Written in the Triton language, and imported when a kernel is compiled."""


OF_FLAX = ("optax_lamblion/flax.py", "optax_lamblion/_flax/")
"""What imports Flax, which nobody else does."""


def test_the_library_imports_only_core_dependencies():
    core = {"jax", "numpy", "optax", *PACKAGES, *sys.stdlib_module_names}
    for path in SOURCES:
        if not relative(path).startswith(
            ("optax_lamblion/cli/", "optax_lamblion/demo/", *OF_FLAX, IN_TRITON)
        ):
            assert top_level(imports(path, at_import_time=True)) <= core, relative(path)


def test_triton_is_imported_only_when_asked_for():
    in_triton = IN_TRITON.removesuffix(".py").replace("/", ".")
    for path in SOURCES:
        at_import = imports(path, at_import_time=True)
        assert "jax_triton" not in top_level(at_import), relative(path)
        assert not any(name.startswith(in_triton) for name in at_import), relative(path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pallas_kernels/arithmetic").rglob("*.py")), ids=relative
)
def test_arithmetic_knows_no_memory_and_no_device(path):
    """So that every implementation can call it, and a kernel body most of it."""
    outside = [x for x in imports(path) if x.split(".")[0] not in sys.stdlib_module_names]
    allowed = r"jax(\.numpy|\.lax)?$|jax\.(numpy|lax)\.|numpy|pallas_kernels\.arithmetic\b"
    assert [x for x in outside if not re.match(allowed, x)] == []


@pytest.mark.parametrize(
    "ladders", ["arithmetic/codecs.py", "arithmetic/ladders.py", "tiled/ladders.py"]
)
def test_what_kernel_bodies_call_imports_jax_numpy_only(ladders):
    names = imports(ROOT / "pallas_kernels" / ladders)
    outside = [x for x in names if x.split(".")[0] not in sys.stdlib_module_names]
    assert all(re.match(r"jax\.numpy\b|pallas_kernels\.arithmetic\.", x) for x in outside)


@pytest.mark.parametrize("one, other", [*itertools.permutations(["xla", "mosaic", "triton"], 2)])
def test_implementations_know_nothing_of_each_other(one, other):
    for path in (ROOT / "pallas_kernels" / one).rglob("*.py"):
        assert not [x for x in imports(path) if x.startswith(f"pallas_kernels.{other}")], path


def test_the_library_works_without_extras():
    script = """
        import sys
        for name in ("cyclopts", "flax", "jax_triton", "matplotlib", "orbax", "rich", "sklearn"):
            sys.modules[name] = None  # importing it raises ImportError
        import optax_lamblion, optax_lamblion.cli, pallas_kernels
        optax_lamblion.lion8bit
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, check=True)


def test_without_flax_the_module_for_it_says_how_to_install_it():
    script = """
        import sys
        sys.modules["flax"] = None  # importing it raises ImportError
        try:
            import optax_lamblion.flax
        except ImportError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "needs Flax" in said and "`pip install 'flax>=0.12.10'`" in said


def test_flax_is_imported_only_where_it_is_asked_for():
    script = "import sys, optax_lamblion; assert 'flax' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
