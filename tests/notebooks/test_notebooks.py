"""The notebooks run from top to bottom, show what they say, and are stored without outputs.

Each is executed once, by a kernel of the Python that runs these tests; what it printed is then held
against what its text claims.
"""

import ast
import importlib.util
import pathlib
import re
import shutil

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import optax_lamblion
import pallas_kernels

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
PICTURES = {"01_quickstart": 1, "02_what_eight_bits_cost": 6, "03_paging_and_memory": 3}
PUBLIC = {package.__name__: set(package.__all__) for package in (optax_lamblion, pallas_kernels)}

# In front of the first cell: a warning that the notebook or the library causes is an error. Those
# of other packages count if they are shown: see `test_nothing_is_complained_about`.
STRICT = """
import warnings
warnings.filterwarnings("error", module=r"(__main__|optax_lamblion|pallas_kernels)\\b")
"""

every_notebook = pytest.mark.parametrize("name", PICTURES)
every_execution = pytest.mark.parametrize("executed", PICTURES, indirect=True)


def execution_of(name):
    return pytest.mark.parametrize("executed", [name], indirect=True)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


def code(notebook):
    """Its code cells as plain Python: `%pip` is a call."""
    transform = TransformerManager().transform_cell
    return [transform(cell.source) for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="session")
def kernel_home(tmp_path_factory):
    """Settings and files of Jupyter and IPython go here, and the user's own are not read."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("jupyter")
        for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
            patch.setenv(variable, str(home))
        patch.delenv("MPLBACKEND", raising=False)  # the kernel's own makes the pictures
        yield


# As a parameter of the module's scope it brings the tests of one execution together.
@pytest.fixture(scope="module")
def executed(request, kernel_home):
    """The notebook with its outputs."""
    notebook = read(request.param)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
    # Without folders to look into, `python3` is the kernel of the running interpreter.
    specs = KernelSpecManager(kernel_dirs=[])
    client = NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs),
        timeout=240,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    # By default, a manager that one brings along keeps its kernel.
    return client.execute(cleanup_kc=True)


def outputs(notebook):
    return [x for cell in notebook.cells if cell.cell_type == "code" for x in cell.outputs]


def printed(notebook, cell_id):
    """What a cell printed, as lines of words."""
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    text = "".join(x.text for x in cell.outputs if x.output_type == "stream")
    return [line.split() for line in text.splitlines()]


def row(notebook, cell_id, *words):
    """The rest of the one line that begins with `words`, its numbers as floats."""
    lines = [line for line in printed(notebook, cell_id) if line[: len(words)] == list(words)]
    assert len(lines) == 1, (words, lines)
    return [number(word) for word in lines[0][len(words) :]]


def number(word):
    try:
        return float(word.rstrip("%").replace(",", ""))
    except ValueError:
        return word


# ------------------------------------------------------------------------------ as stored in git


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(PICTURES)


@every_notebook
def test_it_is_valid_and_asks_for_no_special_kernel(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}  # no version, which would change


@every_notebook
def test_it_is_stored_without_outputs(name):
    for cell in read(name).cells:
        assert not cell.metadata, cell.id
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id


@every_notebook
def test_its_cells_have_words_for_ids(name):
    """Jupyter's own are random, and change when a cell is copied."""
    for cell in read(name).cells:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cell.id)


@every_notebook
def test_it_begins_with_one_title(name):
    text = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    assert read(name).cells[0].source.startswith("# ")
    assert len(re.findall(r"^# ", "\n".join(text), re.MULTILINE)) == 1


@every_notebook
def test_it_imports_public_names_only(name):
    for cell in code(read(name)):
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    assert alias.name.split(".")[0] not in PUBLIC, alias.name
            elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PUBLIC:
                assert {alias.name for alias in node.names} <= PUBLIC[node.module]


# ----------------------------------------------------------------------------- the first code cell


class Shell:
    """Stands for IPython, and remembers what was to be installed."""

    def __init__(self):
        self.ran = []

    def run_line_magic(self, magic, line):
        self.ran.append((magic, line))


def install(name, folder, monkeypatch, *, importable, gpu):
    """What the first cell of a notebook in `folder` asks of pip, with its names filled in."""
    monkeypatch.chdir(folder)
    spec = object() if importable else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setattr(shutil, "which", lambda _: "nvidia-smi" if gpu else None)
    shell, names = Shell(), {}
    exec(code(read(name))[0], names | {"get_ipython": lambda: shell}, names)
    return [(magic, line.format(**names)) for magic, line in shell.ran]


@every_notebook
def test_the_first_cell_installs_nothing_that_is_there(name, tmp_path, monkeypatch):
    assert install(name, tmp_path, monkeypatch, importable=True, gpu=True) == []


@every_notebook
def test_the_first_cell_installs_the_checkout_it_lies_in(name, tmp_path, monkeypatch):
    (tmp_path / "optax_lamblion").mkdir()
    (tmp_path / "notebooks").mkdir()
    asked = install(name, tmp_path / "notebooks", monkeypatch, importable=False, gpu=False)
    assert asked == [("pip", f'install --quiet "{tmp_path}[demo]"')]


@every_notebook
def test_the_first_cell_installs_the_package_where_there_is_no_checkout(
    name, tmp_path, monkeypatch
):
    asked = install(name, tmp_path, monkeypatch, importable=False, gpu=True)
    assert asked == [("pip", 'install --quiet "optax-lamblion[demo,gpu]"')]


# ------------------------------------------------------------------------------------- as executed


@every_execution
def test_nothing_is_complained_about(executed):
    for output in outputs(executed):
        assert output.output_type in ("stream", "display_data"), output
        assert output.get("name") != "stderr", output.text


@every_execution
def test_the_first_cell_names_the_devices(executed):
    (line,) = printed(executed, "install")
    assert line[0] == "JAX" and "Device" in " ".join(line)


@every_execution
def test_every_drawing_cell_draws_one_picture(executed, request):
    pictures = [x for x in outputs(executed) if "image/png" in x.get("data", {})]
    assert len(pictures) == PICTURES[request.node.callspec.params["executed"]]
    for cell in executed.cells:
        drawn = sum("image/png" in x.get("data", {}) for x in cell.get("outputs", []))
        assert drawn == ("plt.show()" in cell.source), cell.id


@execution_of("01_quickstart")
@pytest.mark.parametrize("family", ["lion", "lamb"])
def test_eight_bits_move_a_loss_curve_less_than_other_batches(executed, family):
    (words,) = (x for x in printed(executed, "differences") if x[0] == f"{family}:")
    eight_bits, batches = (number(x.rstrip(",")) for x in (words[7], words[-1]))
    # A fifteenth and a fiftieth were measured.
    assert 0 < eight_bits < batches / 3


@execution_of("01_quickstart")
def test_four_optimizers_learn_and_eight_bits_take_less(executed):
    for family in ("lion", "lamb"):
        loss, accuracy, size, _ = row(executed, "table", f"optax.{family}")
        loss8, accuracy8, size8, _ = row(executed, "table", f"{family}8bit")
        assert max(loss, loss8) < 0.3 and min(accuracy, accuracy8) > 90
        assert size8 < 0.3 * size


@execution_of("01_quickstart")
def test_the_fused_step_ends_where_the_ordinary_one_does(executed):
    losses, taken_over = printed(executed, "fused")
    fused, ordinary = number(losses[2].rstrip(",")), number(losses[-1])
    # A training run amplifies roundings; 1e-4 was measured.
    assert fused == pytest.approx(ordinary, abs=0.01)
    assert taken_over[-1] == "True"


# The bounds are those of `tests/optimizers/test_accuracy.py`, with a tenth more for a sample that
# is smaller: 131,072 elements have a standard error of 0.02 and 0.03 percent.
@execution_of("02_what_eight_bits_cost")
@pytest.mark.parametrize(("sigma", "bound"), [("0", 0.66), ("1", 1.32)])
def test_power_turns_as_few_signs_as_the_readme_says(executed, sigma, bound):
    power = row(executed, "lion", "power", "sigma", sigma)
    dynamic = row(executed, "lion", "dynamic", "sigma", sigma)
    assert power[0] < bound
    assert all(p < 0.9 * d for p, d in zip(power, dynamic, strict=True))


@execution_of("02_what_eight_bits_cost")
def test_linear_is_the_best_for_one_scale_and_the_worst_for_many(executed):
    def rms(*words):
        return row(executed, "encode", *words)[0]

    others = ("power", "dynamic")
    assert rms("gaussian", "linear") < min(rms("gaussian", x) for x in others)
    many = ("log-normal", "scales")
    assert rms(*many, "linear") > max(rms(*many, x) for x in others)


@execution_of("02_what_eight_bits_cost")
def test_zeros_blow_updates_up_and_keep_nonzero_prevents_them(executed):
    for codec in ("linear", "dynamic"):
        zeros, _, worst = row(executed, "zeros", f"{codec},", "nearest")
        assert zeros > 1 and worst > 1e6
    for codec in ("power", "linear", "dynamic"):
        zeros, _, worst = row(executed, "zeros", f"{codec},", "never", "zero")
        assert zeros == 0 and worst < 3


@execution_of("02_what_eight_bits_cost")
def test_only_rounding_to_the_nearest_drifts(executed):
    nearest, *_ = row(executed, "drift", "to", "the", "nearest")
    at_random, mean, *_ = row(executed, "drift", "at", "random")
    optimizer, optimizer_mean, *_ = row(executed, "drift", "scale_by_lamb(bits=8)")
    assert nearest > 0.1
    # As in `test_accuracy.py`; the mean of 8192 ratios with a deviation of 0.13 is known to 0.0015.
    # The optimizer rounds all of a block by one number: of 32 blocks it is known to 0.023 at worst.
    assert max(abs(at_random), abs(optimizer)) < 0.05
    assert abs(mean - 1) < 0.01 and abs(optimizer_mean - 1) < 0.046


@execution_of("03_paging_and_memory")
def test_paged_steps_are_those_of_the_resident_optimizer(executed):
    assert [line[-1] for line in printed(executed, "same")] == ["True", "True"]


@execution_of("03_paging_and_memory")
def test_bytes_per_parameter_are_those_of_the_readme(executed):
    readme = {"optax.adamw": 8, "optax.lion": 4, "lion8bit": 1.016, "lamb8bit": 2.031}
    for name, expected in readme.items():
        each, gib, on_device = row(executed, "table", name)
        assert each == expected and on_device == gib
    for name in ("lion8bit", "lamb8bit"):
        each, _, on_device = row(executed, "table", f"paged_{name}")
        assert (each, on_device) == (readme[name], 0)


@execution_of("03_paging_and_memory")
def test_a_budget_is_kept(executed):
    for budget, on_device, on_host in map(lambda x: map(float, x), printed(executed, "budget")[1:]):
        assert on_device <= budget
        assert on_device + on_host == pytest.approx(6.62, abs=0.011)  # two numbers of two digits


@execution_of("03_paging_and_memory")
def test_what_paging_costs_is_what_its_page_says(executed):
    page = (FOLDER.parent / "docs" / "paging.md").read_text(encoding="utf-8")
    for link, in_cells in (
        ("PCIe 4.0 x16", ("PCIe", "4.0", "x16")),
        ("PCIe 5.0 x16", ("PCIe", "5.0", "x16")),
        ("NVLink-C2C (GH200)", ("NVLink-C2C",)),
    ):
        (cells,) = re.findall(rf"\| {re.escape(link)} \| ([\d,]+)(?: tokens)? \| ([\d,]+) \|", page)
        for name, on_page in zip(("lion8bit", "lamb8bit"), cells, strict=True):
            tokens = row(executed, "cost", f"paged_{name}", *in_cells)[3]
            # The page has two digits.
            assert number(on_page) == pytest.approx(tokens, rel=0.05)


@execution_of("03_paging_and_memory")
def test_lion_needs_no_tensor_of_updates(executed):
    for name in ("lion8bit", "lion32bit"):
        two_calls, fused = row(executed, "temporary", name)
        assert fused < 0.1 < two_calls
