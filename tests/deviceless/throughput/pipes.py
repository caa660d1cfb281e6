"""Which pipe of a multiprocessor takes an instruction."""

import enum

from tests.deviceless.throughput.gpus import ISSUED, WARP


class Pipe(enum.IntEnum):
    """Where an instruction goes."""

    FMA = 0
    """Float32 arithmetic, in either half of its pipe."""
    HEAVY = 1
    """Integer products and arithmetic in 16 bits, in one half of it."""
    BOTH = 2
    """Float32 arithmetic for pairs, in both halves at once."""
    ALU = 3
    XU = 4
    LSU = 5
    NONE = 6
    """What takes a slot of the scheduler only."""


_NAMES = {
    Pipe.FMA: "FADD FADD32I FFMA FFMA32I FMUL FMUL32I",
    Pipe.HEAVY: "FHADD FHFMA FHMUL HADD2 HFMA2 HMUL2 HSETP2 IDP IMAD IMUL",
    Pipe.BOTH: "FADD2 FFMA2 FMUL2",
    Pipe.ALU: (
        "CREDUX F2FP FCHK FMNMX FMNMX3 FSEL FSET FSETP I2FP IABS IADD3 IMNMX ISETP LEA LOP3 MOV P2R"
        " PLOP3 PRMT R2P SEL SGXT SHF VIADD VIADDMNMX VIMNMX VIMNMX3 VOTE"
    ),
    Pipe.XU: "BREV F2F F2I FLO FRND I2F MUFU POPC",
    Pipe.LSU: "LD LDG LDS LDSM REDUX SHFL ST STG STS",
    Pipe.NONE: (
        "ACQBULK BAR BRA BSSY BSYNC CS2R CS2UR DEPBAR ERRBAR EXIT LDC LDCU MEMBAR NOP R2UR S2R S2UR"
        " UFSETP UIADD3 UIMAD UISETP ULDC ULEA ULOP3 UMOV UPLOP3 UPRMT USEL USHF UVIADD VOTEU"
        " WARPSYNC YIELD"
    ),
}
_PIPES = {name: pipe for pipe, names in _NAMES.items() for name in names.split()}


def pipe(name):
    """The pipe of an instruction, by its name without modifiers."""
    if name not in _PIPES:
        raise NotImplementedError(f"Which pipe takes {name}? Say so in {__name__}.")
    return _PIPES[name]


def lsu_cycles(instruction):
    """For how long an access of a warp keeps the LSU, which moves 128 bytes a cycle."""
    return 1.0 if instruction.name == "SHFL" else max(1.0, instruction.width / 4)


def busy_cycles(way, lanes):
    """For how many cycles a warp keeps each pipe of a multiprocessor, and its schedulers.

    Args:
      way: The `sass.Scheduled` instructions that it runs.
      lanes: Of `Gpu.lanes`.
    """
    found = dict.fromkeys(("FMA", "ALU", "XU", "LSU"), 0.0)
    for instruction in way:
        where = pipe(instruction.name)
        if where == Pipe.LSU:
            found["LSU"] += lsu_cycles(instruction)
        elif where != Pipe.NONE:
            name = "FMA" if where in (Pipe.HEAVY, Pipe.BOTH) else where.name
            found[name] += (2 if where == Pipe.BOTH else 1) * WARP / lanes[name]
    return {**found, "issue": len(way) / ISSUED}
