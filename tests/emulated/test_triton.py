"""What Triton compiles, broken on purpose: faults say so."""

import dataclasses

import jax
import pytest

from tests.emulated import cases, launching, mutants, programs
from tests.emulated.conftest import need_compilers
from tests.gpu import comparing

pytestmark = pytest.mark.deviceless
TARGET = "triton-sm_90"


class Step:
    """A step by kernels, as often as wanted."""

    def __init__(self, emulation, name):
        case = cases.steps(TARGET)[name]
        self._emulation, self._given = emulation, comparing.inputs(case)
        self._step = programs.kernels(comparing.spec(case), "triton")
        self.kernels = []
        with emulation.changed(lambda x: self.kernels.append(x) or x):
            assert self.fault() is None

    def fault(self):
        """What kernels are charged with, if anything."""
        self._emulation.fault = None
        jax.block_until_ready(self._step(*self._given))
        return self._emulation.fault

    def fault_with(self, change):
        """The same of kernels that are changed."""
        with self._emulation.changed(change):
            return str(self.fault())


@pytest.fixture(scope="module")
def emulation():
    need_compilers(TARGET)
    with launching.emulated(TARGET) as emulation:
        yield emulation


@pytest.fixture(scope="module")
def step(emulation):
    """With a last tile that is not whole, and warps that add up what they have skipped."""
    return Step(emulation, "lion/counted/poison")


def test_without_any_of_its_barriers_warps_race(step):
    (kernel,) = step.kernels
    removed = [
        mutants.Mutant("a barrier removed", place, mutants.REMOVED)
        for place, x in enumerate(kernel.kernel.code)
        if x.name == "bar"
    ]
    seen = [step.fault_with(lambda x, y=mutant: y.of(x)) for mutant in removed]
    assert len(seen) >= 4
    assert all("races with" in x and "of shared memory" in x for x in seen)


def test_no_program_is_one_too_many(step):
    fault = step.fault_with(lambda x: dataclasses.replace(x, grid=x.grid + 1))
    assert "outside of memory" in fault


def test_no_program_is_one_too_few(step):
    fault = step.fault_with(lambda x: dataclasses.replace(x, grid=x.grid - 1))
    assert "a hole in a result of the shape (5, 1)" in fault
