"""The notebooks run from top to bottom, print what is kept, and show what their text claims.

Each is executed once, by a kernel of the Python that runs these tests.
"""

import re

import pytest

from tests.notebooks.comparing import Close, SameKind, differences
from tests.notebooks.executing import FOLDER, NAMES, complaints, read

every_execution = pytest.mark.parametrize("executed", NAMES, indirect=True)

TRAINED = "a training amplifies the roundings of another processor or compiler"
COUNTED = "a rounding here and there puts an element on the other side of a level"
WORST = "roundings make another element the worst one"
COMPILED = "the compiler decides, and versions of it differ"

TOLERANCES = {
    "01_quickstart": {
        "table": Close(TRAINED, relative=0.02),
        "differences": Close(TRAINED + ", of which these are the size", relative=3),
        "resume": Close(TRAINED, relative=0.02),
    },
    "02_what_eight_bits_cost": {
        "encode": Close(COUNTED, relative=0.02),
        "lion": Close(COUNTED, relative=0.05),
        "lamb": Close(WORST, relative=0.3),
        "zeros": Close(WORST, relative=0.3),
        "drift": Close(COUNTED, absolute=0.02),
        "summary": Close(WORST, relative=0.3),
    },
    "03_paging_and_memory": {
        "temporary": Close(COMPILED, absolute=0.1),
        "live": SameKind("it prints what a device says of itself"),
    },
    "04_fine_tuning_in_bfloat16": {
        "train": Close(TRAINED, relative=0.05),
        "share-moved": Close(TRAINED, relative=0.05),
        "results": Close(TRAINED, relative=0.05),
    },
}
"""By cell. Where none is stated, nothing in the output depends on the machine."""

MACHINE = {"imports": SameKind("it prints versions and devices")}


def execution_of(name):
    return pytest.mark.parametrize("executed", [name], indirect=True)


def printed(notebook, cell_id):
    """What a cell printed or showed as a table, as lines of words."""
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    texts = [x.text if x.output_type == "stream" else x.data["text/plain"] for x in cell.outputs]
    return [line.split() for line in "\n".join(texts).splitlines()]


def row(notebook, cell_id, name):
    """The rest of the one line that begins with the words of `name`, its numbers as floats."""
    words = name.split()
    lines = [line for line in printed(notebook, cell_id) if line[: len(words)] == words]
    assert len(lines) == 1, (words, lines)
    return [number(word) for word in lines[0][len(words) :]]


def number(word):
    try:
        return float(word.replace(",", ""))
    except ValueError:
        return word


@every_execution
def test_nothing_is_complained_about(executed):
    assert complaints(executed) == []


@every_execution
def test_outputs_that_are_kept_are_those_of_now(executed, request):
    """If not, `python -m tests.notebooks` makes them anew."""
    name = request.node.callspec.params["executed"]
    assert differences(read(name), executed, MACHINE | TOLERANCES[name]) == []


@every_execution
def test_imports_name_the_devices(executed):
    line, *_ = printed(executed, "imports")
    assert line[0] == "JAX" and "Device" in " ".join(line)


# ---------------------------------------------------------------------------------- 01_quickstart

FAMILIES = ("adamw", "lion", "lamb")


@execution_of("01_quickstart")
@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bits_move_a_loss_curve_less_than_other_batches(executed, family):
    eight_bits, batches = row(executed, "differences", family)
    # A tenth of it and less was measured.
    assert 0 < eight_bits < batches / 3


@execution_of("01_quickstart")
@pytest.mark.parametrize("family", FAMILIES)
def test_optimizers_learn_and_eight_bits_take_less(executed, family):
    loss, accuracy, size = row(executed, "table", f"optax.{family}")
    loss8, accuracy8, size8 = row(executed, "table", f"{family}8bit")
    assert max(loss, loss8) < 0.3 and min(accuracy, accuracy8) > 90
    assert size8 < 0.3 * size
    assert row(executed, "bytes", f"{family}8bit")[1] == size8


@execution_of("01_quickstart")
def test_a_step_in_place_takes_memory_over(executed):
    (line,) = printed(executed, "in-place")
    assert line[-1] == "True"


@execution_of("01_quickstart")
def test_a_resumed_training_ends_where_the_others_do(executed):
    bits, losses = printed(executed, "resume")
    assert bits[-1] == "True"
    in_place, ordinary = number(losses[2]), number(losses[5])
    # A training amplifies roundings; 1e-4 was measured.
    assert in_place == pytest.approx(ordinary, abs=0.01)


# ------------------------------------------------------------------------ 02_what_eight_bits_cost


# The bounds are those of `tests/optimizers/test_accuracy.py`, with a tenth more for a sample that
# is smaller: 65,536 elements have a standard error of 0.03 and 0.05 percent.
@execution_of("02_what_eight_bits_cost")
@pytest.mark.parametrize(("sigma", "bound"), [("0", 0.66), ("1", 1.32)])
def test_power_flips_as_few_signs_as_the_accuracy_page_says(executed, sigma, bound):
    power = row(executed, "lion", f"power, sigma {sigma}")
    dynamic = row(executed, "lion", f"dynamic, sigma {sigma}")
    assert power[0] < bound
    assert all(p < 0.9 * d for p, d in zip(power, dynamic, strict=True))


@execution_of("02_what_eight_bits_cost")
def test_its_introduction_says_how_many_signs_flip(executed):
    (percent,) = re.findall(
        r"about ([\d.]+) % with gradients of one scale", executed.cells[0].source
    )
    assert row(executed, "lion", "power, sigma 0")[0] == pytest.approx(float(percent), abs=0.1)


@execution_of("02_what_eight_bits_cost")
def test_linear_is_the_best_for_one_scale_and_the_worst_for_many(executed):
    def rms(*words):
        return row(executed, "encode", ", ".join(words))[0]

    others = ("power", "dynamic")
    assert rms("Gaussian", "linear") < min(rms("Gaussian", x) for x in others)
    many = "log-normal scales"
    assert rms(many, "linear") > max(rms(many, x) for x in others)


@execution_of("02_what_eight_bits_cost")
def test_zeros_blow_updates_up_and_keep_nonzero_prevents_them(executed):
    for codec in ("linear", "dynamic"):
        zeros, _, worst = row(executed, "zeros", f"{codec}, nearest")
        assert zeros > 1 and worst > 1e6
    for codec in ("power", "linear", "dynamic"):
        zeros, _, worst = row(executed, "zeros", f"{codec}, never zero")
        assert zeros == 0 and worst < 3


@execution_of("02_what_eight_bits_cost")
def test_only_rounding_to_nearest_drifts(executed):
    nearest, *_ = row(executed, "drift", "to nearest")
    stochastic, mean, *_ = row(executed, "drift", "stochastic")
    optimizer, optimizer_mean, *_ = row(executed, "drift", "scale_by_lamb(bits=8)")
    assert nearest > 0.1
    # As in `test_accuracy.py`; the mean of 4096 ratios with a deviation of 0.13 is known to 0.002.
    # The optimizer rounds all of a block by one number: of 16 blocks it is known to 0.033 at worst.
    assert max(abs(stochastic), abs(optimizer)) < 0.05
    assert abs(mean - 1) < 0.01 and abs(optimizer_mean - 1) < 0.066


# --------------------------------------------------------------------------- 03_paging_and_memory


@execution_of("03_paging_and_memory")
def test_paged_steps_are_those_of_the_resident_optimizer(executed):
    assert [line[-1] for line in printed(executed, "same")] == ["True", "True"]


@execution_of("03_paging_and_memory")
def test_bytes_per_parameter_are_those_of_the_front_page(executed):
    known = {"optax.adamw": 8, "optax.lion": 4, "optax.lamb": 8}
    known |= {"lion8bit": 1.016, "lamb8bit": 2.031, "adamw8bit": 2.031}
    for name, expected in known.items():
        each, on_device, on_host = row(executed, "table", name)
        assert (each, on_host) == (expected, 0)
        if name.endswith("8bit"):
            assert row(executed, "table", f"paged_{name}") == [each, 0, on_device]


@execution_of("03_paging_and_memory")
def test_a_budget_is_kept(executed):
    budgets = [list(map(float, x)) for x in printed(executed, "budget") if x and x[0].isdigit()]
    assert len(budgets) == 5
    for budget, on_device, on_host in budgets:
        assert on_device <= budget
        assert on_device + on_host == pytest.approx(6.62, abs=0.011)  # two numbers of two digits


@execution_of("03_paging_and_memory")
def test_what_paging_costs_is_what_its_page_says(executed):
    page = (FOLDER.parent / "docs" / "paging.md").read_text(encoding="utf-8")
    for on_page, link in (
        ("PCIe 4.0 x16", "PCIe 4.0 x16"),
        ("PCIe 5.0 x16", "PCIe 5.0 x16"),
        ("NVLink-C2C (GH200)", "NVLink-C2C"),
    ):
        pattern = rf"\| {re.escape(on_page)} \| ([\d,]+)(?: tokens)? \| ([\d,]+) \|"
        (cells,) = re.findall(pattern, page)
        for name, tokens in zip(("lion8bit", "lamb8bit"), cells, strict=True):
            # The page has two digits.
            there = row(executed, "cost", f"paged_{name}, {link}")[2]
            assert number(tokens) == pytest.approx(there, rel=0.05)


@execution_of("03_paging_and_memory")
def test_lion_needs_no_tensor_of_updates(executed):
    for name in ("lion8bit", "lion32bit"):
        two_calls, fused = row(executed, "temporary", name)
        assert fused < 0.1 < two_calls


# --------------------------------------------------------------------- 04_fine_tuning_in_bfloat16

FLOAT32, PAGED = "float32, adamw32bit", "bfloat16 compensated, paged_adamw8bit"


@execution_of("04_fine_tuning_in_bfloat16")
def test_bytes_of_a_training_are_those_of_its_introduction(executed):
    each = row(executed, "configurations", FLOAT32)
    assert each == [4, 4, pytest.approx(8, abs=0.01), 0, pytest.approx(16, abs=0.01)]
    *each, on_host, on_device = row(executed, "configurations", PAGED)
    # Small leaves stay in 32 bits and on the device: 6,154 of 302,090 parameters.
    assert on_device == pytest.approx(4, abs=0.25)
    assert on_device + on_host == pytest.approx(7, abs=0.25)


@execution_of("04_fine_tuning_in_bfloat16")
def test_what_is_measured_over_time_is_what_was_calculated(executed):
    for name in (FLOAT32, "bfloat16 stochastic, adamw8bit", PAGED):
        *_, on_host, on_device = row(executed, "configurations", name)
        most, _, measured_host = row(executed, "timeline", name)
        # Two numbers of two digits, and a few scalars such as the number of steps.
        assert most == pytest.approx(on_device, abs=0.02)
        assert measured_host == pytest.approx(on_host, abs=0.02)


@execution_of("04_fine_tuning_in_bfloat16")
def test_only_rounding_to_nearest_loses_steps(executed):
    exact, _ = row(executed, "results", "float32, 32-bit state")
    nearest, _ = row(executed, "results", "bfloat16 nearest")
    # 2.7 times, and less than a hundredth, were measured.
    assert nearest > 2 * exact
    for name in (
        "bfloat16 stochastic",
        "bfloat16 compensated, paged",
        "the same in full precision",
    ):
        assert row(executed, "results", name)[0] == pytest.approx(exact, rel=0.1)


@execution_of("04_fine_tuning_in_bfloat16")
def test_a_paged_run_resumes_with_either_state(executed):
    assert [line[-1] for line in printed(executed, "resume")] == ["True", "True"]
