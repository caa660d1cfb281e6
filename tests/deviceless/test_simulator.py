"""The simulator of a multiprocessor, on programs whose time is known by hand. Needs no compiler."""

import pytest

from tests.deviceless.sass import scheduled
from tests.deviceless.throughput import programs
from tests.deviceless.throughput.gpus import GPUS
from tests.deviceless.throughput.hardware import Machine
from tests.deviceless.throughput.pipes import Pipe, busy_cycles, pipe
from tests.deviceless.throughput.programs import Kind, Step
from tests.deviceless.throughput.simulator import simulate

FAST = Machine(blocks=4, halves=2, latency=0, bandwidth=1e9)
LAUNCH = 150  # cycles between a block and the next one in its place
FEW = dict(multiprocessors=1, rounds=12, seeds=(1,))


def step(pipe, kind=Kind.ORDINARY, *, waits=(), writing=None, stall=1, cost=1.0, moved=0.0):
    return Step(int(pipe), int(kind), waits, None, writing, stall, cost, moved)


@pytest.mark.parametrize(
    ("pipe", "halves", "cycles"),
    [
        # Cycles of a multiprocessor for an instruction of a block, which is one of 128 threads.
        (Pipe.NONE, 2, 1),
        (Pipe.FMA, 2, 1),
        (Pipe.FMA, 1, 2),
        (Pipe.HEAVY, 2, 2),
        (Pipe.BOTH, 2, 2),
        (Pipe.ALU, 2, 2),
        (Pipe.XU, 2, 8),
        (Pipe.LSU, 2, 4),
    ],
)
def test_a_pipe_takes_as_many_threads_a_cycle_as_it_has_lanes(pipe, halves, cycles):
    found = simulate([step(pipe)] * 400, FAST._replace(halves=halves), **FEW)
    # Of four blocks one begins while three run, so nothing waits for it. 5 %: the first ones begin
    # at different times.
    assert found.cycles == pytest.approx(400 * cycles, rel=0.05)


def test_pipes_work_at_the_same_time():
    found = simulate([step(Pipe.ALU), step(Pipe.FMA)] * 200, FAST, **FEW)
    assert found.cycles == pytest.approx(400, rel=0.05)


def test_a_warp_stalls_as_it_is_told():
    alone = FAST._replace(blocks=1)
    found = simulate([step(Pipe.FMA, stall=10)] * 50, alone, **FEW)
    assert found.cycles == pytest.approx(50 * 10 + LAUNCH, abs=10)


@pytest.mark.parametrize("others", [1, 8])
def test_what_waits_for_a_load_waits_for_its_latency(others):
    """Once, for loads that are on their way together."""
    load = step(Pipe.LSU, Kind.LOAD, writing=0, moved=512.0)
    steps = [load] * others + [step(Pipe.FMA, waits=(0,))]
    found = simulate(steps, FAST._replace(blocks=1, latency=5000), **FEW)
    assert 5000 < found.cycles - LAUNCH < 5000 + 4 * 8 * others + 20


def test_a_load_that_nothing_waits_for_costs_no_time():
    load = step(Pipe.LSU, Kind.LOAD, writing=0, moved=512.0)
    found = simulate([load, step(Pipe.FMA)], FAST._replace(blocks=1, latency=5000), **FEW)
    assert found.cycles < LAUNCH + 50


def test_a_multiprocessor_has_its_part_of_the_bandwidth():
    load = step(Pipe.LSU, Kind.LOAD, writing=0, cost=4.0, moved=512.0)
    steps = [load] * 50 + [step(Pipe.NONE, waits=(0,))]
    found = simulate(steps, FAST._replace(bandwidth=20), **FEW)
    assert found.cycles == pytest.approx(4 * 50 * 512 / 20, rel=0.05)


def test_warps_of_a_block_wait_for_each_other():
    """Those that are at the barrier, for the one that the LSU serves last."""
    alone, barrier = FAST._replace(blocks=1), step(Pipe.NONE, Kind.BARRIER)
    access = step(Pipe.LSU, writing=0, cost=100.0)
    steps = [access, step(Pipe.NONE, waits=(0,)), barrier, step(Pipe.NONE)]
    found = simulate(steps, alone, **FEW)
    assert 400 < found.cycles - LAUNCH < 400 + 24 + 16 + 20
    without = simulate([access, step(Pipe.NONE, waits=(0,))], alone, **FEW)
    assert without.cycles - LAUNCH > 400  # a block ends when its last warp does


def test_the_same_seeds_give_the_same_time():
    steps = [step(Pipe.LSU, Kind.LOAD, writing=0, moved=512.0), step(Pipe.XU, waits=(0,))] * 20
    busy = FAST._replace(latency=800, bandwidth=30)
    assert simulate(steps, busy, **FEW) == simulate(steps, busy, **FEW)


# ------------------------------------------------------------------------------- what it is given


def test_control_codes_are_read():
    load, sum_ = scheduled(["0&2:1:-:Y:0f LD.E.128", "-:-:3:-:02 FADD.FTZ"])
    assert (load.name, load.width) == ("LD", 16)
    assert (load.waits, load.reading, load.writing, load.stall) == ((0, 2), 1, None, 15)
    assert (sum_.waits, sum_.reading, sum_.writing, sum_.stall) == ((), None, 3, 2)
    with pytest.raises(ValueError, match="no control code"):
        scheduled([" FADD"])


def test_bytes_are_those_of_main_memory():
    way = scheduled(["-:-:0:-:02 LD.E.128", "0:-:-:-:02 FADD", "-:0:-:-:02 ST.E.128"])
    steps = programs.program(way, moved=24)  # of 32: the rest, all threads of a row read
    assert [x.bytes for x in steps] == [12 * 32, 0, 12 * 32]
    assert [x.kind for x in steps] == [Kind.LOAD, Kind.ORDINARY, Kind.STORE]
    with pytest.raises(ValueError, match="moves 80.0 bytes"):
        programs.program(way, moved=80)


def test_an_instruction_of_no_known_pipe_is_an_error():
    with pytest.raises(NotImplementedError, match="Which pipe takes FOO"):
        pipe("FOO")


def test_pipes_are_kept_busy_by_lanes():
    names = ["FFMA", "FFMA2", "IMAD", "FSEL", "MUFU", "SHFL", "LDG.E.128", "BAR"]
    way = scheduled([f"-:-:-:-:02 {name}" for name in names])
    busy = busy_cycles(way, GPUS["b200"].lanes)
    assert busy == {"FMA": 1.0, "ALU": 0.5, "XU": 2.0, "LSU": 5.0, "issue": 2.0}
    assert busy_cycles(way, GPUS["a100"].lanes)["FMA"] == 2.0


@pytest.mark.parametrize(
    ("registers", "blocks"), [(32, 16), (48, 10), (64, 8), (96, 5), (128, 4), (168, 3), (255, 2)]
)
def test_blocks_of_a_multiprocessor_are_those_that_its_registers_hold(registers, blocks):
    """As the CUDA occupancy calculator has it."""
    assert GPUS["h200"].blocks(registers, 128) == blocks
