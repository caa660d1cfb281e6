"""Threads, memory and what a GPU would refuse, on kernels of a few lines."""

import numpy as np
import pytest

from tests.emulated import ptx
from tests.emulated.faults import Fault, Unknown
from tests.emulated.launch import Launch
from tests.emulated.memory import Memory

HEAD = """.version 9.0
.target sm_90a
.address_size 64
.visible .entry kernel(
  .param .u64 .ptr .align 256 x,
  .param .u64 .ptr .align 256 y
)
.maxntid 64, 1, 1
{
  .reg .pred %p<9>;
  .reg .b16 %h<9>;
  .reg .b32 %r<32>;
  .reg .b64 %d<32>;
  .shared .align 16 .b8 s;
  ld.param::entry.b64 %d1, [x];
  ld.param::entry.b64 %d2, [y];
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, %ctaid.x;
  mad.lo.s32 %r3, %r2, 64, %r1;
  mul.wide.u32 %d3, %r3, 4;
  add.s64 %d4, %d1, %d3;
  add.s64 %d5, %d2, %d3;
"""


def run(body, x=None, *, blocks=2, out=None, writable=False):
    """What the kernel leaves in `y`: by default a number for each of 64 threads of each block."""
    x = np.arange(64 * blocks, dtype=np.uint32) if x is None else x
    y = np.zeros(64 * blocks if out is None else out, np.uint32)
    memory = Memory()
    arguments = (
        memory.add("x", x, writable=writable),
        memory.add("y", y, writable=True, initialised=False),
    )
    kernel = ptx.parse(
        HEAD
        + "\n".join(x.strip() + ";" for x in body.split(";") if x.strip()).replace(":;", ":")
        + "\n}\n"
    )
    Launch(kernel, memory.close(), arguments, range(blocks), 64, shared=256).run()
    return memory.array(arguments[1], y)


def lines(*statements):
    return ";".join(statements)


LOAD, STORE = "ld.global.b32 %r4, [%d4]", "st.global.b32 [%d5], %r5"


def test_threads_have_places_of_their_own():
    got = run(lines(LOAD, "add.s32 %r5, %r4, %r2", STORE, "ret"))
    np.testing.assert_array_equal(got, np.arange(128) + np.arange(128) // 64)


def test_numbers_side_by_side():
    x = np.arange(256, dtype=np.uint32)
    body = lines("shl.b64 %d6, %d3, 1", "add.s64 %d4, %d1, %d6",
                 "ld.v2.b32 {%r6, %r7}, [%d4]", "xor.b32 %r5, %r6, %r7", STORE, "ret")  # fmt: skip
    np.testing.assert_array_equal(run(body, x), x[::2] ^ x[1::2])


def test_parts_of_registers():
    body = lines(LOAD, "mov.b32 {%h1, %h2}, %r4", "mov.b32 %r5, {%h2, %h1}", STORE, "ret")
    x = np.arange(128, dtype=np.uint32) * np.uint32(0x01234567)
    np.testing.assert_array_equal(run(body, x), x << 16 | x >> 16)
    body = lines(LOAD, "cvt.u16.u32 %h1, %r4", "cvt.rn.f32.s16 %r5, %h1", STORE, "ret")
    expected = x.astype(np.uint16).view(np.int16).astype(np.float32)
    np.testing.assert_array_equal(run(body, x).view(np.float32), expected)
    # A signed byte fills its register with its sign.
    body = lines(LOAD, "cvt.s8.s32 %h1, %r4", "mov.b32 %r5, {%h1, %h1}", STORE, "ret")
    byte = x.astype(np.int8).astype(np.uint16).astype(np.uint32)
    np.testing.assert_array_equal(run(body, x), byte << 16 | byte)


def test_an_operand_that_gives_no_byte_needs_no_value():
    x = np.arange(128, dtype=np.uint32) * np.uint32(0x01234567)
    for selectors, expected in (("0x3210U", x), ("0x7654U", x), ("0x1032U", x << 16 | x >> 16)):
        pair = "%r9, %r4" if selectors == "0x7654U" else "%r4, %r9"
        body = lines(LOAD, f"prmt.b32 %r5, {pair}, {selectors}", STORE, "ret")
        np.testing.assert_array_equal(run(body, x), expected)


def test_pairs_of_numbers_are_compared_one_by_one():
    body = lines(LOAD, "mov.b32 %r6, 0x40404040", "setp.lt.bf16x2 %p1|%p2, %r4, %r6",
                 "selp.b32 %r7, 1, 0, %p1", "selp.b32 %r5, %r7, 8, %p2", STORE, "ret")  # fmt: skip
    x = np.random.default_rng(0).standard_normal(256, np.float32) * 4
    pairs = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    low, high = ((pairs.astype(np.uint32) << np.uint32(16)).view(np.float32)[i::2] for i in (0, 1))
    # Both halves of the number, 0x4040, are 3 in bfloat16.
    expected = np.where(high < 3, low < 3, 8)
    assert set(expected) == {0, 1, 8}
    np.testing.assert_array_equal(run(body, pairs.view(np.uint32)), expected)


def test_as_triton_writes_it():
    """Assembler of its own with other spaces, guards, and for debuggers a tail of data."""
    text = HEAD.replace("::entry", "").replace(".maxntid 64, 1, 1", ".reqntid 64")
    text += """
        setp.lt.u32 %p1, %r1, 60;
        mov.u32 %r5, 0x7;
        @!%p1 mov.u32 %r5, 0x0;
        // begin inline asm
        @%p1 ld.global.b32 { %r5 }, [ %d4 + 16 ];
        // end inline asm
        @%p1 st.global.b32 [ %d5 + 0 ], { %r5 };
        @!%p1 st.global.b32 [ %d5 + 0 ], { %r1 };
        ret;
    $L__tmp1:
    $L__func_end0:

}
    .file 1 "/a/file.py"
    .section .debug_abbrev
    {
.b8 1                                   // Abbreviation Code
.b8 17
    }
    .section .debug_macinfo { }
"""
    text = text.replace(".visible", ".global .align 1 .b8 _$_str[3] = {95, 95, 0};\n.visible", 1)
    x = np.arange(64, dtype=np.uint32) + np.uint32(100)
    memory = Memory()
    arguments = memory.add("x", x, writable=False), memory.add("y", x, writable=True)
    Launch(ptx.parse(text), memory.close(), arguments, range(1), 64, shared=256).run()
    expected = np.append(x[4:], np.arange(60, 64))
    np.testing.assert_array_equal(memory.array(arguments[1], x), expected)


def test_threads_part_and_meet_again():
    """Each goes through a loop as often as its number says; then the warp exchanges what it has."""
    body = lines(
        "and.b32 %r6, %r1, 15", "mov.b32 %r5, 0", "setp.eq.s32 %p1, %r6, 0", "@%p1 bra DONE",
        "LOOP:", "add.s32 %r5, %r5, %r6", "add.s32 %r6, %r6, -1", "setp.ne.s32 %p2, %r6, 0",
        "@%p2 bra LOOP", "DONE:", "shfl.sync.bfly.b32 %r7, %r5, 1, 31, -1",
        "shfl.sync.idx.b32 %r8, %r5, 2, 31, -1", "mad.lo.s32 %r5, %r7, 1000, %r8", STORE, "ret",
    )  # fmt: skip
    sums = np.arange(128) % 16 * (np.arange(128) % 16 + 1) // 2
    expected = sums[np.arange(128) ^ 1] * 1000 + sums[np.arange(128) // 32 * 32 + 2]
    np.testing.assert_array_equal(run(body), expected)


def test_reductions_and_elections_of_warps():
    x = np.random.default_rng(0).standard_normal(128).astype(np.float32)
    body = lines(LOAD, "redux.sync.max.NaN.f32 %r5, %r4, -1", STORE, "ret")
    got = run(body, x.view(np.uint32)).view(np.float32)
    np.testing.assert_array_equal(got, np.repeat(x.reshape(4, 32).max(1), 32))
    x[40] = np.nan
    got = run(body, x.view(np.uint32)).view(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.arange(128) // 32 == 1)
    body = lines("elect.sync %r6|%p1, -1", "selp.b32 %r5, 1, 0, %p1", STORE, "ret")
    np.testing.assert_array_equal(run(body), np.arange(128) % 32 == 0)


SHARED = ("mov.b32 %r6, s", "shl.b32 %r7, %r1, 2", "add.s32 %r6, %r6, %r7",
          "st.shared.b32 [%r6], %r1")  # fmt: skip
ANOTHER = "xor.b32 %r7, %r7, 252", "ld.shared.b32 %r5, [%r7]", STORE, "ret"


def test_shared_memory_is_that_of_a_block():
    np.testing.assert_array_equal(
        run(lines(*SHARED, "bar.sync 0", *ANOTHER)), np.tile(np.arange(64)[::-1], 2)
    )


def matrices(statement):
    """Each thread stores its number in shared memory, and gives the addresses of rows."""
    return lines(
        *SHARED, "bar.sync 0", "and.b32 %r7, %r1, 15", "shl.b32 %r7, %r7, 4",
        statement, "mad.lo.s32 %r5, %r9, 1000, %r8", STORE, "ret",
    )  # fmt: skip


def test_matrices_are_dealt_out_to_a_warp():
    """Two of 8 rows of four numbers each: a thread gets one of each, of a row for four threads."""
    got = run(matrices("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r8, %r9}, [%r7]"))
    place = np.arange(128) % 32
    np.testing.assert_array_equal(got, (place + 32) * 1000 + place)


REFUSED = {
    "a misaligned row": (
        matrices("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r8, %r9}, [%r7+4]"), "misaligned"
    ),
    "a row beyond shared memory": (
        matrices("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r8, %r9}, [%r7+16]"), "outside"
    ),
    "beyond the end": (lines("ld.global.b32 %r4, [%d4+4]"), "thread 63 of block 1"),
    "before the start": (lines("ld.global.b32 %r4, [%d4+-4]"), "outside of memory"),
    "far beyond the end": (lines("ld.global.b32 %r4, [%d4+65536]"), "outside of memory"),
    "misaligned": (lines("ld.v2.b32 {%r4, %r5}, [%d4]"), "misaligned for 8 bytes"),
    "a store to an operand": (lines("st.global.b32 [%d4], %r1"), "read-only"),
    "a result that is read": (lines("ld.global.b32 %r4, [%d5]"), "never written"),
    "a register without a value": (lines("add.s32 %r5, %r9, 1"), "never written"),
    "a register without a value that gives a byte": (
        lines("prmt.b32 %r5, %r1, %r9, 0x3240U"), "never written"
    ),
    "a register that some threads have": (
        lines("setp.eq.s32 %p1, %r1, 0", "@%p1 mov.b32 %r9, 1", "add.s32 %r5, %r9, 1"),
        "never written is read (thread 1 of block 0)",
    ),
    "shared memory without a value": (lines("ld.shared.b32 %r4, [s+16]"), "never written"),
    "beyond shared memory": (lines("ld.shared.b32 %r4, [s+256]"), "outside of memory"),
    "a barrier for a part of a warp": (
        lines("setp.lt.s32 %p1, %r1, 5", "@%p1 bra A", "bar.sync 0", "A:"),
        "threads of its warp are elsewhere",
    ),
    "a barrier for a part of a block": (
        lines("setp.lt.s32 %p1, %r1, 32", "@%p1 bra A", "bar.sync 0", "A:"),
        "waits for ever",
    ),
    "a shuffle for a part of a warp": (
        lines(
            "setp.lt.s32 %p1, %r1, 5", "@%p1 bra A", "shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1", "A:"
        ),
        "threads of its warp are elsewhere",
    ),
    "no barrier": (lines(*SHARED, *ANOTHER[:2]), "races with a store"),
    "a store after a load": (
        lines(*SHARED, "bar.sync 0", *ANOTHER[:2], "st.shared.b32 [%r6], %r5"),
        "races with another access",
    ),
    "two blocks": (
        lines("mul.wide.u32 %d6, %r1, 4", "add.s64 %d6, %d2, %d6", "st.global.b32 [%d6], %r2"),
        "races",
    ),
    "two threads": (lines("st.global.b32 [%d2], %r1"), "races"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gpu_refuses_or_does_not_define(name):
    body, words = REFUSED[name]
    with pytest.raises(Fault) as fault:
        run(body + ";ret")
    assert words in str(fault.value) and "kernel, line" in str(fault.value)


def test_what_is_no_race():
    for body in (
        lines("st.global.b32 [%d2], 7", "ret"),  # the same number
        lines(*SHARED, "bar.sync 0", *ANOTHER[:2], "bar.sync 0", "st.shared.b32 [%r6], %r5", "ret"),
        lines("ld.global.b32 %r5, [%d1]", STORE, LOAD.replace("4]", "5]"), "ret"),
    ):  # fmt: skip
        run(body)


UNKNOWN = (
    "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r4}, [%r1]",
    "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r4}, [%r1]",
    "frobnicate.b32 %r4, %r1",
    "shfl.sync.bfly.b32 %r4, %r1, 1, 31, 7",
    "bar.arrive 0, 64",
    "ld.volatile.global.b32 %r4, [%d4]",
    "bra NOWHERE",
    "mov.b32 %r4, %clock",
    "mov.u32 %r4, %q",
    "add.s32 %r4, %r1",
    "ld.global.v2.b32 {%r4}, [%d4]",
    "setp.lt.f32 %r4, %r1, %p1",
    "setp.lt.and.bf16x2 %p1|%p2, %r1, %r2, %p3",
    "mov.b32 %r4, _$_str",
    "ld.global.b32 %r4, [_$_str]",
)


@pytest.mark.parametrize("statement", UNKNOWN)
def test_what_is_not_known_is_refused_by_name(statement):
    with pytest.raises(Unknown) as error:
        run(lines(statement, "ret"))
    assert statement in str(error.value)


NO_KERNELS = (
    "",
    HEAD.replace(".u64 .ptr .align 256 x", ".u32 x") + "ret;\n}\n",
    HEAD + "{ .reg .b32 t; }\n}\n",
    HEAD + ".local .align 4 .b8 l[16];\nret;\n}\n",
    HEAD + ".shared .align 16 .b8 t[16];\nret;\n}\n",
    HEAD + "call f;\nret;\n}\n.global .b32 g;",
)


@pytest.mark.parametrize("text", NO_KERNELS)
def test_what_is_no_kernel_is_refused(text):
    with pytest.raises(Unknown):
        ptx.parse(text)
