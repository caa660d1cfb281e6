"""Instructions that have to do with other threads, or with where a thread goes on."""

import numpy as np

from tests.emulated.faults import Unknown
from tests.emulated.lanes import WARP
from tests.emulated.operands import expect
from tests.emulated.ptx import immediate
from tests.emulated.rounding import canonical

_EVERYBODY = 2**WARP - 1


def _only(x, *forms):
    if x.modifiers not in forms:
        raise Unknown("there is no such form of the instruction here")


def shuffle(operands, x):
    """Takes a value of another thread of the warp."""
    _only(x, ("sync", "bfly", "b32"), ("sync", "idx", "b32"))
    target, source, of, clamp, members = x.operands
    expect(clamp, WARP - 1)
    expect(members, _EVERYBODY)
    write, read, which = (
        operands.write(target),
        operands.read(source, "u32"),
        operands.read(of, "u32"),
    )
    butterfly = "bfly" in x.modifiers

    def step(lanes):
        lanes.whole_warps()
        every = np.arange(lanes.count)
        place = (every ^ which(lanes) if butterfly else which(lanes)) & (WARP - 1)
        value = np.broadcast_to(read(lanes), lanes.count)
        write(lanes, value[every - every % WARP + place.astype(int)])

    return step


def reduce(operands, x):
    """The largest value of a warp, or a NaN if there is one."""
    _only(x, ("sync", "max", "NaN", "f32"))
    target, source, members = x.operands
    expect(members, _EVERYBODY)
    write, read = operands.write(target), operands.read(source, "f32")

    def step(lanes):
        lanes.whole_warps()
        warps = np.broadcast_to(read(lanes), lanes.count).reshape(-1, WARP)
        write(lanes, np.repeat(canonical(warps.max(axis=1)), WARP))

    return step


def elect(operands, x):
    """One thread of the warp, here the first."""
    _only(x, ("sync",))
    targets, members = x.operands
    expect(members, _EVERYBODY)
    leader, is_leader = (operands.write(target) for target in targets.split("|"))

    def step(lanes):
        lanes.whole_warps()
        leader(lanes, np.uint32(0))
        is_leader(lanes, lanes.tid % WARP == 0)

    return step


def barrier(operands, x):
    """Waits for so many threads of the block, by default for all."""
    _only(x, ("sync",))
    number, *expected = x.operands
    number, expected = operands.read(number, "u32"), [immediate(text, 32) for text in expected]
    return lambda lanes: lanes.arrive(number(lanes), *expected or [lanes.launch.threads])


def branch(operands, x):
    """Goes on elsewhere, where its guard holds."""
    _only(x, (), ("uni",))
    (label,) = x.operands
    to = operands.kernel.labels[label]
    if x.guard is None:
        return lambda lanes: lanes.places.__setitem__(lanes.mask, to)
    holds = operands.condition(x.guard)
    return lambda lanes: lanes.places.__setitem__(lanes.mask & holds(lanes), to)


def leave(operands, x):
    """Ends threads."""
    _only(x, ())

    def step(lanes):
        lanes.left |= lanes.mask

    return step


def nothing(operands, x):
    """Orders what is in order here anyway."""
    return lambda lanes: None
