"""The harness sees what it should, on kernels and programs whose cost is known by hand."""

import pytest

from tests.deviceless import assembling, dump, hlo, jax_triton_calls, mosaic, sass
from tests.deviceless.compiling import bytes_moved, copies, mosaic_kernels
from tests.deviceless.targets import TARGETS

pytestmark = pytest.mark.deviceless

SIZE = 64 * 256 * 4  # the float32 matrix that `scaling.py` works on
TILE = 16 * 256 * 4  # the rows of it that one block of threads takes
FACTOR = 4


@pytest.fixture
def harness(facts_for):
    """Results of the harness's own cases for one target, by short name."""
    return lambda name, target="h200": facts_for(target)[f"harness/{name}"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_compiles_a_kernel_in_place(harness, target):
    facts = harness("in_place", target)["facts"]
    assert facts["temp"] == 0
    assert facts["alias"] == SIZE
    assert not copies(facts)
    assert mosaic_kernels(facts) == ["harness_scale"]


def test_work_of_the_host_s_processor_is_seen(harness):
    assert harness("chosen_on_host")["facts"]["host_compute"]
    assert not harness("in_place")["facts"]["host_compute"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_its_own_machine_code(harness, target):
    kernel = harness("in_place", target)["kernels"]["harness_scale(1xf32, 64x256xf32)"]
    # 128 threads take 16 rows of 256: 32 elements each, in 8 accesses of 16 bytes.
    assert (kernel["grid"], kernel["threads"]) == ([4, 1, 1], 128)
    assert kernel["sass"]["load_widths"] == {"16": 8, "4": 1}
    assert kernel["sass"]["store_widths"] == {"16": 8}
    opcodes = kernel["sass"]["opcodes"]
    assert opcodes.get("FMUL", 0) + 2 * opcodes.get("FMUL2", 0) == 32  # 10.0 multiplies pairs
    assert 32 < kernel["sass"]["registers"] <= 64  # the elements and some addresses
    assert kernel["sass"]["spilled_bytes"] == 0


def test_a_copy_that_protects_an_argument_is_seen(harness):
    facts = harness("not_donated")["facts"]
    assert facts["alias"] == 0
    assert [x["writes"] for x in copies(facts)] == [SIZE]
    assert not copies(facts, at_least=SIZE + 1)


@pytest.mark.parametrize(
    ("case", "reads", "writes"),
    [
        ("in_place", FACTOR + SIZE, SIZE),
        ("not_donated", FACTOR + 2 * SIZE, 2 * SIZE),
        ("into", FACTOR + SIZE, 2 * SIZE),  # what is only written does not count as read
        ("twice", 2 * (FACTOR + SIZE), 2 * SIZE),
        ("pad", SIZE, SIZE + SIZE // 64),
        ("first_rows", TILE, TILE),
        ("set_rows", TILE, TILE),
        ("norm", SIZE, 64 * 4),
    ],
)
def test_bytes_are_those_counted_by_hand(harness, case, reads, writes):
    facts = harness(case)["facts"]
    assert sum(x["reads"] for x in facts["launches"]) == reads
    assert sum(x["writes"] for x in facts["launches"]) == writes
    assert bytes_moved(facts) == reads + writes


@pytest.mark.parametrize(
    ("case", "kinds"),
    [
        ("not_donated", ["copy", "mosaic"]),
        ("twice", ["mosaic", "mosaic"]),
        ("pad", ["copy"]),
        ("first_rows", ["fusion"]),
        ("set_rows", ["copy"]),
        ("norm", ["reduce"]),
    ],
)
def test_launches_are_told_apart(harness, case, kinds):
    assert [x["kind"] for x in harness(case)["facts"]["launches"]] == kinds


def test_equal_kernels_are_one_kernel_launched_twice(harness):
    result = harness("twice")
    launched = [x["kernel"] for x in result["facts"]["launches"]]
    assert launched == 2 * list(result["kernels"])


def test_reads_writes_and_what_is_unused_are_told_apart(harness):
    (kernel,) = harness("into")["kernels"].values()
    matrix = "64x256xf32"
    assert kernel["key"] == f"harness_scale_into(1xf32, -, {matrix}, {matrix}, {matrix})"
    assert (kernel["reads"], kernel["writes"]) == ([0, 2], [3, 4])


def test_instructions_are_counted_where_the_code_is_a_straight_line(harness):
    (straight,) = harness("in_place")["kernels"].values()
    count = sass.instructions_on_main_path(straight)
    assert count == sum(straight["sass"]["opcodes"].values())
    # A thread loads, multiplies and stores 32 elements: 8 + 32 + 8 instructions, and some more.
    assert 48 < count < 80
    assert sass.instructions_per_element(straight, 64 * 256) == count / 32


def test_instructions_are_not_counted_where_there_is_a_loop(harness):
    (loop,) = harness("rows")["kernels"].values()
    with pytest.raises(ValueError, match="no straight line: 1 loops"):
        sass.instructions_on_main_path(loop)


@pytest.mark.parametrize("count", [bytes_moved, copies, mosaic_kernels])
def test_a_program_with_a_loop_is_not_counted(harness, count):
    with pytest.raises(ValueError, match="has a while"):
        count(harness("while")["facts"])


def test_a_case_that_fails_leaves_its_traceback_and_the_other_cases(facts_for):
    results = facts_for("h200")
    assert "a case that fails, on (64, 256)" in results.errors()["harness/fails"]
    assert results["harness/norm"]  # it comes later


def test_kernels_that_cannot_be_told_apart_are_refused(facts_for):
    error = facts_for("h200").errors()["harness/ambiguous"]
    assert "Give kernels that differ names that differ" in error


def test_spills_are_read_off_the_report():
    report = """
        ptxas info    : Compiling entry function 'k' for 'sm_90a'
            8 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
        ptxas info    : Used 255 registers
    """
    assert sass.assembled(report, "sm_90a") == {"registers": 255, "spilled_bytes": 20}
    with pytest.raises(ValueError, match="sm_80"):
        sass.assembled(report, "sm_80")


def test_code_that_never_runs_is_not_counted():
    code = sass.disassembled("""
        /*0000*/  LDG.E.128 R4, desc[UR4][R2.64] ;
        .L_x_0:
        /*0010*/  FFMA R4, R4, R0, R4 ;
        /*0020*/  @P0 BRA `(.L_x_0) ;
        /*0030*/  @!P1 BRA `(.L_x_1) ;
        /*0040*/  STG.E.U8 desc[UR4][R2.64], R4 ;
        .L_x_1:
        /*0050*/  EXIT ;
        .L_x_2:
        /*0060*/  BRA `(.L_x_2) ;
        /*0070*/  NOP ;
    """)
    assert (code["instructions"], code["loops"], code["branches"]) == (6, 1, 1)
    assert (code["load_widths"], code["store_widths"]) == ({"16": 1}, {"1": 1})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("@!P0 BRA `(.L_x_0)", "@P0 EXIT"),  # ends here where the first part ran
        ("@!P0 BRA `(.L_x_0)", "@P0 BRA `(.L_x_1)"),
        ("@!UP1 BRA `(.L_x_0)", "@UP1 EXIT"),
    ],
)
@pytest.mark.parametrize("short_first", [True, False])
def test_the_shortest_way_is_one_of_two_that_exclude_each_other(first, second, short_first):
    """Neither is passed by, and not both are run, however the code skips the other one."""
    parts = ["FADD R1, R1, R2 ;"], 5 * ["FMUL R1, R1, 8.5e+37 ;"]
    lines = [first + " ;", *parts[not short_first], ".L_x_0:", second + " ;"]
    lines += [*parts[short_first], ".L_x_1:", "EXIT ;"]
    code = sass.disassembled(assembly(lines))
    # The first condition, a part, the second condition; and the end, if the second one is a jump,
    # or is an exit that is not taken.
    ends = not (short_first and "EXIT" in second)
    assert code["shortest"] == 1 + len(parts[0]) + 1 + ends
    assert code["numbers"] == {"8.5e+37": [5, 0]}


@pytest.mark.parametrize(
    ("between", "shortest"),
    [
        ("SEL R1, R2, R3, P0", 5),  # one of the two parts runs
        ("ISETP.GE.AND P1, P2, R1, R2, P0", 5),
        ("ISETP.GE.AND P0, PT, R1, R2, PT", 4),  # both may be skipped
        ("IADD3 R1, P1, P0, R2, R3, R4", 4),
        ("PLOP3.LUT P0, PT, P1, P2, PT, 0x8, 0x0", 4),
        ("R2P PR, R1, 0x7f", 4),
    ],
)
def test_a_predicate_that_is_written_again_is_not_known(between, shortest):
    lines = ["@!P0 BRA `(.L_x_0) ;", "FADD R1, R1, R2 ;", "FADD R1, R1, R2 ;", ".L_x_0:"]
    lines += [between + " ;", "@P0 BRA `(.L_x_1) ;", "FMUL R1, R1, R2 ;", ".L_x_1:", "EXIT ;"]
    assert sass.disassembled(assembly(lines))["shortest"] == shortest


def test_an_exit_of_blocks_that_have_nothing_to_do_is_not_the_way():
    lines = ["@P0 EXIT ;", "FADD R1, R1, R2 ;", "@!P0 EXIT ;", "FADD R1, R1, R2 ;", "EXIT ;"]
    assert sass.disassembled(assembly(lines))["shortest"] == 3


def test_a_jump_back_to_a_part_that_is_placed_out_of_order_is_no_loop():
    # The second part stands before the first one.
    lines = ["@P0 BRA `(.L_x_1) ;", "BRA `(.L_x_2) ;"]
    lines += [".L_x_0:", "FADD R1, R1, R2 ;", "EXIT ;"]
    lines += [".L_x_1:", *3 * ["FMUL R1, R1, R2 ;"], "BRA `(.L_x_0) ;"]
    lines += [".L_x_2:", *2 * ["FMUL R1, R1, R2 ;"], "BRA `(.L_x_0) ;"]
    code = sass.disassembled(assembly(lines))
    assert (code["loops"], code["branches"]) == (0, 4)
    assert code["shortest"] == 2 + 2 + 1 + 2


@pytest.mark.parametrize("back", ["BRA `(.L_x_0) ;", "@!P1 BRA `(.L_x_0) ;"])
def test_a_loop_that_jumps_ahead_on_its_way_is_one(back):
    lines = [".L_x_0:", "@P0 BRA `(.L_x_2) ;", "FADD R1, R1, R2 ;", "@P2 EXIT ;", "EXIT ;"]
    lines += [".L_x_2:", "FMUL R1, R1, R2 ;", back, "EXIT ;"]
    code = sass.disassembled(assembly(lines))
    assert (code["loops"], code["branches"], code["shortest"]) == (1, 1, None)


def assembly(lines):
    """Lines of machine code as the disassembler prints them."""
    return "\n".join(
        line if line.startswith(".") else f"/*{16 * i:04x}*/  {line}"
        for i, line in enumerate(lines)
    )


ENCODED = """\
        /*00f0*/    LDG.E.64 R32, desc[UR6][R2.64] ;    /* 0x0000000602207981 */
                                                        /* 0x000f28000c1e1b00 */
        /*0100*/    LEA R2, P0, R71.reuse, R4, 0xc ;    /* 0x0000000447027211 */
                                                        /* 0x042fe200078060ff */
        /*0110*/    EXIT ;                              /* 0x000000000000794d */
                                                        /* 0x000fea0003800000 */
"""


def test_what_the_assembler_advises_is_read_off_encoded_instructions():
    found = sass.disassembled(assembling.with_control(ENCODED))
    load, lea, end = sass.scheduled(found["way"])
    assert (load.name, load.waits, load.reading, load.writing, load.stall) == (
        "LDG",
        (),
        None,
        4,
        4,
    )
    assert (lea.name, lea.waits, lea.reading, lea.writing, lea.stall) == (
        "LEA",
        (1,),
        None,
        None,
        1,
    )
    assert (end.name, end.stall) == ("EXIT", 5)


def test_an_access_that_is_not_understood_is_an_error():
    argument = "%0 = builtin.unrealized_conversion_cast %p : !s to memref<8xf32> " + (
        "{mosaic_gpu.from_kernel_arg_idx = 0 : i32}\n"
    )
    view = "%v = memref.subview %0[%i] [4] [1] : memref<8xf32> to memref<4xf32>\n"
    load = '%1 = "mosaic_gpu.vector_load"(%v) : (memref<4xf32>) -> vector<4xf32>\n'
    assert mosaic.accesses(argument + view + load) == ([0], [])
    with pytest.raises(NotImplementedError, match="atomic_rmw"):
        mosaic.accesses(argument + view + "%1 = memref.atomic_rmw addf %x, %v[%i] : f32\n")


def test_triton_s_accesses_are_followed_to_the_arrays():
    code = """
      tt.func public @k(%a: !tt.ptr<f32> loc(#a), %b: !tt.ptr<u8> {x = 1 : i32}, %c: !tt.ptr<f32>) {
        %0 = tt.splat %a : !tt.ptr<f32> -> tensor<8x!tt.ptr<f32>> loc(#l)
        %1 = tt.addptr %0, %at : tensor<8x!tt.ptr<f32>>, tensor<8xi32>
        scf.if %p {
          %2 = tt.addptr %b, %at : !tt.ptr<u8>, i32
          tt.store %2, %v : !tt.ptr<u8>
        } else {
          %2 = tt.load %1 : tensor<8x!tt.ptr<f32>>
          tt.store %1, %2 : tensor<8x!tt.ptr<f32>>
        }
    """
    assert jax_triton_calls.accesses(code) == ((0,), (0, 1))
    with pytest.raises(NotImplementedError, match="atomic_rmw"):
        jax_triton_calls.accesses(code + "%3 = tt.atomic_rmw fadd, relaxed, gpu, %c, %v\n")
    other = "tt.func private @f(%a: tensor<8xf32>) {\n tt.return %a : tensor<8xf32>\n"
    assert jax_triton_calls.accesses(code + other) == ((0,), (0, 1))


def test_arrays_on_the_host_take_no_device_memory():
    device, host = hlo.arrays("(bf16[8]{0}, u8[2,4]{1,0:S(5)}, token[])")
    assert (device.bytes, host.bytes) == (16, 0)
    assert str(host) == "u8[2,4]"


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule empty")


def test_a_kernel_without_machine_code_is_an_error(tmp_path):
    (tmp_path / "k_0.before_layout_inference.txt").write_text("module @k {\n}\n")
    with pytest.raises(LookupError, match="0 compiled"):
        dump.Dump(tmp_path, "sm_90a").new()
