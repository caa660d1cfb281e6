"""The transfers between host and device in a compiled program, among the kernels, in order."""

_IN, _OUT, _WITHIN, _DONE = "in", "out", "within host", "done"
_KERNEL, _MATMUL = "kernel", "matmul"
STARTS = ("copy-start", "dynamic-slice-start", "dynamic-update-slice-start")
"""How the names of launches begin that are transfers."""


def moved(events):
    """Bytes that go in and out: `{"in": ..., "out": ...}`, from what `transfers` returns."""
    return {way: sum(size for event, _, size in events if event == way) for way in (_IN, _OUT)}


def transfers(program):
    """What ENTRY of a `hlo.Program` issues, in order: `[event, name, bytes]`.

    Events are `"in"` and `"out"`, the start of a transfer to and from the device, `"done"` with the
    name of the transfer that it waits for, `"matmul"` and other `"kernel"`, and `"within host"` for
    a copy on the host, which should not be there.
    """
    events = []
    entry = program.entry.instructions
    for x in entry.values():
        if x.opcode.endswith("-done"):
            events.append([_DONE, x.operands[0], 0])
        elif x.opcode in ("copy-start", "copy") and any(a.on_host for a in x.arrays):
            to, *source = x.arrays[:2] if x.opcode == "copy-start" else x.arrays
            events.append(_copy(x.name, to, source[0] if source else to))
        elif x.opcode == "fusion-start":
            events.append(_piece(program, x, entry))
        elif x.opcode in ("fusion", "custom-call"):
            is_matmul = "gemm" in x.attributes.split("metadata=")[0] or "gemm" in x.name
            events.append([_MATMUL if is_matmul else _KERNEL, x.name, 0])
    return events


def _copy(name, to, source):
    if to.on_host and source.on_host:
        return [_WITHIN, name, _size(to)]
    return [_OUT if to.on_host else _IN, name, _size(to)]


def _piece(program, x, entry):
    """A piece of an array on the host, read or written; another fusion is a kernel."""
    body = program.computations[x.called()[0]]
    moves = [y for y in body.instructions.values() if y.opcode.startswith("dynamic-")]
    given = [a for name in x.operands for a in entry[name].arrays]
    if len(moves) != 1 or not any(a.on_host for a in given):
        return [_KERNEL, x.name, 0]
    (move,) = moves
    if move.opcode == "dynamic-slice":
        return [_IN, x.name, _size(move.arrays[0])]
    return [_OUT, x.name, _size(body.instructions[move.operands[1]].arrays[0])]


def _size(array):
    """Bytes, wherever they are."""
    size = array.bits // 8
    for n in array.shape:
        size *= n
    return size


def overlaps(events):
    """How many kernels run while a transfer to the device is under way, and while one from it is.

    Returns:
      A dict of counts: `"kernels"`, and of those `"in"` and `"out"`.
    """
    under_way, counts = {}, {"kernels": 0, _IN: 0, _OUT: 0}
    for event, name, _ in events:
        if event in (_IN, _OUT):
            under_way[name] = event
        elif event == _DONE:
            under_way.pop(name, None)
        elif event == _KERNEL:
            counts["kernels"] += 1
            for way in set(under_way.values()):
                counts[way] += 1
    return counts
