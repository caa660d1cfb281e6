"""What generated kernels say: every primitive, exact numbers, masks, and what is refused."""

import ast
import inspect
import itertools
import keyword
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_kernels.arithmetic.codecs import CODECS
from pallas_kernels.tiled.running import Small
from pallas_kernels.triton import kernel, launch, rules
from pallas_kernels.triton.tile import cut
from tests.kernels import test_mosaic as steps
from tests.steps import on_arrays
from tests.triton.__main__ import ARRAYS, main, sources
from tests.triton.compiling import kernels
from tests.triton.standing_in import BY_TRITON, executed

SHAPE = (8, 256)
WEIRD = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.5, -2.5]


def values(dtype, seed=0):
    """A tile of numbers of a dtype, of all sizes and kinds."""
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return jnp.asarray(rng.integers(info.min, info.max, SHAPE, dtype, endpoint=True))
    x = rng.normal(size=SHAPE) * rng.lognormal(size=SHAPE)
    x[seed, :7], x[3, seed : 7 + seed] = WEIRD, WEIRD
    return jnp.asarray(x, dtype)


def with_body(body):
    """A function of a tile and of a small array that runs a body over them."""

    def call(x, small):
        cut = launch.BACKEND.cut(x.size, SHAPE[1], [x.dtype])
        made = dict(out=jax.ShapeDtypeStruct(x.shape, x.dtype))
        read = dict(x=x, small=Small(jnp.asarray(small)))
        return launch.BACKEND.run("computes", body, cut, read, {}, made)[0]["out"]

    return call


def computed(function, *arrays):
    """`function` of tiles as a kernel."""

    def body(tile, read, written, out, sums):
        tile.store(out["out"], function(*map(tile.load, read["x"])))

    cut = launch.BACKEND.cut(arrays[0].size, SHAPE[1], [x.dtype for x in arrays])
    out = dict(out=jax.eval_shape(function, *arrays))
    return launch.BACKEND.run("computes", body, cut, dict(x=arrays), {}, out)[0]["out"]


def primitives(jaxpr):
    """Names of all primitives, also in what is called."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        if "jaxpr" in equation.params:
            yield from primitives(equation.params["jaxpr"].jaxpr)


def as_numbers(function):
    return lambda *args: function(*args).astype(jnp.int32)


def shifted(function):
    return lambda x, y: function(x, y & y.dtype.type(7))


def spread(x):
    return lax.broadcast_in_dim(x, SHAPE, (0,))


F32, I32, U32, U8 = ("float32",) * 2, ("int32",) * 2, ("uint32",) * 2, ("uint8",) * 2

# By primitive: functions of tiles, and dtypes of what they are given.
CASES = {
    "add": [(lambda x, y: x + y, dtypes) for dtypes in (F32, I32, U32, U8)],
    "sub": [(lambda x, y: x - y, dtypes) for dtypes in (F32, I32, U32)],
    "mul": [(lambda x, y: x * y, dtypes) for dtypes in (F32, I32, U32)],
    "neg": [(lambda x: -x, F32[:1]), (lambda x: -x, I32[:1])],
    "abs": [(lambda x: jnp.abs(x), F32[:1])],
    "max": [(jnp.maximum, F32), (jnp.maximum, U32), (lambda x: jnp.maximum(x, 0.25), F32[:1])],
    "min": [(jnp.minimum, F32), (lambda x: jnp.minimum(0.25, x), F32[:1])],
    "div": [(lax.div, F32), (lambda x: lax.div(x, jnp.uint32(7)), U32[:1])],
    "rem": [(lambda x: lax.rem(x, jnp.uint32(7)), U32[:1])],
    "sqrt": [(lambda x: jnp.sqrt(jnp.abs(x)), F32[:1])],
    "exp2": [(jnp.exp2, F32[:1])],
    "log2": [(lambda x: jnp.log2(jnp.abs(x)), F32[:1])],
    "and": [(lambda x, y: x & y, U32), (as_numbers(lambda x, y: (x > 0) & (y > 0)), F32)],
    "or": [(lambda x, y: x | y, I32)],
    "xor": [(lambda x, y: x ^ y, I32), (lambda x: x ^ jnp.uint8(128), U8[:1])],
    "not": [(lambda x: ~x, U32[:1]), (as_numbers(lambda x: ~(x > 0)), F32[:1])],
    "shift_left": [(shifted(lax.shift_left), U32)],
    "shift_right_logical": [(shifted(lax.shift_right_logical), U32)],
    "shift_right_arithmetic": [(shifted(lax.shift_right_arithmetic), I32)],
    "lt": [(as_numbers(lambda x, y: x < y), F32), (as_numbers(lambda x, y: x < y), U32)],
    "le": [(as_numbers(lambda x, y: x <= y), F32), (as_numbers(lambda x: x <= 1.5), F32[:1])],
    "gt": [(as_numbers(lambda x, y: x > y), F32)],
    "ge": [(as_numbers(lambda x, y: x >= y), F32)],
    "eq": [(as_numbers(lambda x, y: x == y), F32), (as_numbers(lambda x, y: x == y), U8)],
    "ne": [(as_numbers(lambda x, y: x != y), F32)],
    "select_n": [
        (lambda x, y: jnp.where(x < y, x, y), F32),
        (lambda x: jnp.where(x > 0, x, 0), F32[:1]),
        *[
            (lambda x, d=d: jnp.where(x > 0, jnp.asarray(3, d), jnp.asarray(1, d)), F32[:1])
            for d in ("float32", "bfloat16", "float16", "int32", "int8", "uint8", "uint32")
        ],
    ],
    "broadcast_in_dim": [
        (lambda x: spread(jnp.max(x, axis=1)), I32[:1]),
        (lambda x: spread(jnp.max(x, axis=1) * 2), I32[:1]),
        (lambda x: x + jnp.full(SHAPE, 0.1), F32[:1]),
        (lambda x: jnp.full(SHAPE, jnp.sum(jnp.max(x, axis=1))), I32[:1]),
    ],
    "squeeze": [(lambda x: x + jnp.squeeze(jnp.full((1,), 3.0), 0), F32[:1])],
    "convert_element_type": [
        *[(lambda x, d=d: x.astype(d), F32[:1]) for d in ("bfloat16", "float16")],
        *[(lambda x: x.astype("float32"), (d,)) for d in ("bfloat16", "float16", "uint8", "int8")],
        *[(lambda x, d=d: x.astype(d), I32[:1]) for d in ("uint8", "uint32", "float32")],
        (lambda x: x.astype("int32"), U8[:1]),
        (as_numbers(lambda x: x > 0), F32[:1]),
    ],
    "bitcast_convert_type": [
        (lambda x: x.view("int32"), F32[:1]),
        (lambda x: (x | jnp.uint32(1 << 29)).view("float32"), U32[:1]),  # not subnormal
        (lambda x: x.view("int8"), U8[:1]),
    ],
    "iota": [
        *[
            (lambda x, d=d, axis=axis: lax.broadcasted_iota(d, SHAPE, axis), F32[:1])
            for d in ("int32", "float32")
            for axis in (0, 1)
        ],
        (lambda x: spread(lax.broadcasted_iota("int32", SHAPE[:1], 0)), F32[:1]),
    ],
    "reduce_max": [
        (lambda x: jnp.max(x, axis=1), F32[:1]),
        (lambda x: jnp.max(x, axis=1), U8[:1]),
        (lambda x: spread(jnp.full(SHAPE[:1], jnp.max(jnp.max(x, axis=1), axis=0))), I32[:1]),
    ],
    "reduce_sum": [
        (lambda x: jnp.sum(x, axis=1), I32[:1]),
        (lambda x: jnp.sum(jnp.where(x > 0, 1, 0).astype("float32"), axis=1), F32[:1]),
        (lambda x: jnp.sum(jnp.full(SHAPE, 0.5), axis=1), F32[:1]),
    ],
    "integer_pow": [(lambda x, n=n: x**n, F32[:1]) for n in (2, 3, 8, 13)],
    "square": [(jnp.square, F32[:1])],
}
FLAT = [(name, i) for name, cases in CASES.items() for i in range(len(cases))]


@pytest.mark.parametrize("name, i", FLAT, ids=[f"{name}-{i}" for name, i in FLAT])
def test_a_primitive_does_what_it_does_in_jax(name, i):
    function, dtypes = CASES[name][i]
    arrays = [values(dtype, seed) for seed, dtype in enumerate(dtypes)]
    known = set(primitives(jax.make_jaxpr(function)(*arrays).jaxpr))
    assert name in known or name in ("square", "integer_pow")  # which of the two is up to JAX
    out, expected = executed(computed)(function, *arrays), jax.jit(function)(*arrays)
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    rounds = name in ("sqrt", "exp2", "log2", "div", "integer_pow")
    # NumPy's functions and XLA's are off by 2 ulp at most; of a power every product is rounded.
    np.testing.assert_allclose(*map(as_float64, (out, expected)), rtol=rounds * 13 * 2.0**-23)


def as_float64(x):
    with np.errstate(invalid="ignore"):  # of NaNs that signal
        return np.asarray(x).astype(np.float64)


def test_every_rule_has_a_case():
    assert CASES.keys() == {*rules.RULES, *rules.POWERS}


NUMBERS = [
    *[("float32", x) for x in (0.1, 1 / 3, 2.0**-126, 3.4e38, -2.5e-9, *WEIRD)],
    *[("bfloat16", x) for x in (0.1, 1e38, -1.5)],
    *[("float16", x) for x in (0.1, 6e-8, 65504.0)],
    *[("uint32", x) for x in (0, 2**31 - 1, 2**31, 2**32 - 1)],
    *[("int32", x) for x in (0, -(2**31), 2**31 - 1, -7)],
    *[("int8", x) for x in (-128, 127)],
    *[("uint8", x) for x in (0, 255)],
]


@pytest.mark.parametrize("dtype, number", NUMBERS, ids=lambda x: str(x))
@pytest.mark.parametrize("as_operand", [False, True], ids=["alone", "operand"])
def test_numbers_are_written_exactly(dtype, number, as_operand):
    number = np.asarray(number).astype(dtype)

    def function(x):
        return jnp.where(x > 1, x.astype(dtype), number) if as_operand else jnp.full(SHAPE, number)

    out = np.asarray(executed(computed)(function, jnp.ones(SHAPE)))
    assert out.dtype == number.dtype
    bits = f"u{number.itemsize}"
    np.testing.assert_array_equal(out.view(bits), np.broadcast_to(number, SHAPE).view(bits))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
def test_numbers_are_read_back_as_they_are(kind):
    """Without a rounding, also where Python takes them for numbers of 64 bits."""
    for x in np.random.default_rng(0).normal(size=50).astype(kind):
        text = rules.literal(x, jax.ShapeDtypeStruct((), x.dtype)).text
        assert ast.literal_eval(text) == np.float64(x)


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_numbers_of_a_small_array_are_found_by_their_indices(shape):
    small, x = np.arange(6, dtype="float32").reshape(shape), values("float32")

    def body(tile, read, written, out, sums):
        last = (
            read["small"][tile.number + 5] if len(shape) == 1 else read["small"][tile.number + 1, 2]
        )
        tile.store(out["out"], tile.load(read["x"]) * last)

    np.testing.assert_array_equal(executed(with_body(body))(x, small), x * 5)


# ------------------------------------------------------------------------------------ refusals

TABLE = np.arange(256, dtype="float32")


def branching(x):
    return lax.cond(x[0, 0] > 0, lambda: x, lambda: -x)


REFUSED = {
    "sin": (jnp.sin, F32[:1], "no `sin`, .* of float32.8,256.*add it to `RULES`.*: abs, add, "),
    "cumsum": (lambda x: jnp.cumsum(x, axis=1), F32[:1], "no `cumsum`"),
    "logical_of_signed": (
        shifted(lax.shift_right_logical), I32, "no `shift_right_logical` of such numbers",
    ),
    "arithmetic_of_unsigned": (
        shifted(lax.shift_right_arithmetic), U32, "no `shift_right_arithmetic` of such numbers",
    ),
    "float_rem": (lax.rem, F32, "no `rem` but of integers"),
    "table": (lambda x: x + jnp.take(TABLE, 3), F32[:1], "numbers only, not arrays"),
    "other_axis": (lambda x: x + jnp.max(x, axis=0)[None], F32[:1], "no `reduce_max`"),
    "both_axes": (lambda x: jnp.full(SHAPE, jnp.sum(x)), F32[:1], "no `reduce_sum` but over a row"),
    "keepdims": (
        lambda x: x - jnp.max(x, axis=1, keepdims=True), F32[:1], "neither a tile, nor a row",
    ),
    "other_reduction": (
        lambda x: lax.reduce(x, np.float32(0), lambda a, b: a + jnp.abs(b), (1,)),
        F32[:1], "no `reduce`",
    ),
    "loop": (lambda x: lax.fori_loop(0, 3, lambda i, y: y * y, x), F32[:1], "no `scan`"),
    "unbounded_loop": (
        lambda x: lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y * y, x), F32[:1], "no `while`",
    ),
    "other_bits": (
        lambda x: lax.bitcast_convert_type(x, "uint16")[..., 0], F32[:1], "neither a tile",
    ),
    "root_as_power": (lambda x: x**-2, F32[:1], "no `integer_pow` to the power of -2"),
    "power": (lambda x: x**0.3, F32[:1], "no `pow`"),
    "three_cases": (
        lambda x, i: lax.select_n(jnp.clip(i, 0, 2), x, -x, x + x),
        ("float32", "int32"), "no `(clamp|select_n)`",
    ),
    "other_length": (lambda x: x + jnp.sum(lax.iota("float32", 4)), F32[:1], "no `iota` with"),
    "columns": (lambda x: x + jnp.arange(256.0)[None], F32[:1], "neither a tile"),
    "reshape": (lambda x: x.reshape(16, 128).reshape(8, 256), F32[:1], "no `reshape`"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_triton_cannot_do_is_refused_by_name_while_tracing(case):
    function, dtypes, match = REFUSED[case]
    arrays = [values(dtype) for dtype in dtypes]
    with pytest.raises(NotImplementedError, match=match):
        kernels(lambda *x: computed(function, *x), *arrays)


def returning_branch(tile, read, written, out, sums):
    x = tile.load(read["x"])
    tile.store(out["out"], lax.cond(tile.number > 0, lambda: x, lambda: -x))


def of_a_part(tile, read, written, out, sums):
    tile.store(out["out"], jnp.full(SHAPE, jnp.sum(read["x"][0, :4], axis=0)))


def of_a_row(tile, read, written, out, sums):
    tile.store(out["out"], jnp.full(SHAPE, jnp.sum(read["small"][1], axis=0)))


def adding(tile, read, written, out, sums):
    jax.ref.addupdate(read["small"], (0, 0), jnp.float32(1))


@pytest.mark.parametrize(
    "body, match",
    [
        (returning_branch, "returns nothing: .* of 2 and returns 1"),
        (of_a_part, "all of its tile of `x`, no part"),
        (of_a_row, r"single numbers of `small`, .* \(4, 4\), and not \(4,\)"),
        (adding, "no `addupdate`"),
    ],
)
def test_what_a_body_must_not_do_is_said(body, match):
    with pytest.raises(NotImplementedError, match=match):
        kernels(with_body(body), values("float32"), jnp.ones((4, 4)))


# ------------------------------------------------------------------------------ whole kernels


def written(leaf):
    call = on_arrays(BY_TRITON.step)
    return [x.kernel for x in kernels(lambda *arrays: call(leaf.spec, *arrays), *leaf.arrays())]


@pytest.mark.parametrize("rule", steps.RULES)
@pytest.mark.parametrize("codec", sorted({name for name, _ in CODECS}))
@pytest.mark.parametrize("emit", ["params", "updates"])
def test_every_rule_has_kernels_that_are_python(rule, codec, emit):
    given = {"tl", "triton", "float", "log2", "largest"}
    kernels_of_step = written(steps.Leaf(rule, codec=codec, emit=emit))
    assert kernels_of_step
    for made in kernels_of_step:
        (function,) = ast.parse(made.source).body
        parameters = [x.arg for x in function.args.args]
        assert parameters == [x.name for x in made.pointers]
        assert len(set(parameters)) == len(parameters)
        assert not given & {*parameters} and not any(map(keyword.iskeyword, parameters))
        names = [x for x in ast.walk(function) if isinstance(x, ast.Name)]
        stored = {x.id for x in names if isinstance(x.ctx, ast.Store)}
        assert {x.id for x in names if isinstance(x.ctx, ast.Load)} <= stored | {
            *parameters
        } | given
        # What is a parameter is moved to where a tile begins, and never anything else.
        moved = {x.target.id for x in ast.walk(function) if isinstance(x, ast.AugAssign)}
        assert stored & {*parameters} <= moved


def masks(source):
    """Of the way of whole tiles and the way of the last one, `(accesses, those with a mask)`."""
    (function,) = ast.parse(source).body
    branches = [
        x for x in function.body if isinstance(x, ast.If) and ast.unparse(x.test)[:6] == "tile <"
    ]
    ways = [x for branch in branches for x in (branch.body, branch.orelse)] or [function.body]
    for way in ways:
        calls = [x for s in way for x in ast.walk(s) if isinstance(x, ast.Call)]
        calls = [x for x in calls if ast.unparse(x.func) in ("tl.load", "tl.store")]
        large = [x for x in calls if is_large(x)]
        yield len(large), sum(any(k.arg == "mask" for k in x.keywords) for x in large)


def is_large(call):
    """Whether an access is of elements or blocks, not of one number."""
    return ast.unparse(call.args[0]).endswith((" + at", " + row"))


@pytest.mark.parametrize("rule", ["lion", "lamb"])
@pytest.mark.parametrize(
    "rows, ragged", [(16, [False]), (32, [False]), (3, [True]), (32 + 3, [False, True])]
)
def test_masks_are_in_the_last_tile_and_only_where_it_is_not_full(rule, rows, ragged):
    for size in {rows * 256, rows * 256 - 5 * any(ragged)}:
        for made in written(steps.Leaf(rule, shape=(size,), bad=False)):
            assert made.cut.rows in (4, 8, 16)
            seen = list(masks(made.source))
            assert [bool(masked) for _, masked in seen] == ragged, made.name
            assert all(masked in (0, count) for count, masked in seen)


def test_the_page_shows_the_kernel_that_is_written():
    page = (Path(__file__).parents[2] / "docs/triton.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- kernel dequantize -->\n\n```text\n(.*?)```", page, re.DOTALL)
    assert [shown] == sources("dequantize")


@pytest.mark.parametrize("name", [*steps.RULES, *ARRAYS])
def test_every_kernel_can_be_printed(name, capsys):
    main([name])
    printed = capsys.readouterr().out
    assert printed.count("@triton.jit") == (2 if name.startswith("lamb") else 1)
    with pytest.raises(SystemExit, match=f"Usage: .*{name}"):
        main([])


def test_equal_steps_have_one_function(monkeypatch):
    """Which Triton compiles once, and whose source Python finds."""
    language = types.ModuleType("triton.language")
    fake = types.SimpleNamespace(jit=lambda f: f, language=language)
    functions = types.SimpleNamespace(largest=max, log2_on_cuda=min, log2_on_rocm=abs)
    monkeypatch.setitem(sys.modules, "triton", fake)
    monkeypatch.setitem(sys.modules, "triton.language", language)
    monkeypatch.setitem(sys.modules, "pallas_kernels.triton.functions", functions)
    monkeypatch.setattr(kernel, "_FUNCTIONS", {})
    (one,) = written(steps.Leaf(shape=(8192,)))
    (again,) = written(steps.Leaf(shape=(32, 256)))
    (other,) = written(steps.Leaf(shape=(8193,)))
    function = kernel.function(one, "cuda")
    assert kernel.function(again, "cuda") is function
    assert kernel.function(other, "cuda") is not function
    assert kernel.function(one, "rocm") is not function
    assert function.__globals__["log2"] is min
    assert inspect.getsource(function) == one.source
    assert len(kernel._FUNCTIONS) == 3


@pytest.mark.parametrize("block", [32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("per_thread, itemsize", [*itertools.product([8, 16, 32], [2, 4])])
def test_a_tile_is_dealt_out_to_all_threads(block, per_thread, itemsize):
    made = cut(10**6, block, [f"float{8 * itemsize}"], per_thread)
    parts, rows, span = made.shape
    assert rows == made.rows and parts * span == block and made.rows * made.lanes == 128
    assert span == made.lanes * made.vector and made.vector * itemsize == 16
    assert all(n & (n - 1) == 0 for n in made.shape)  # as Triton wants them
    assert made.tiles * made.elements >= 10**6 > (made.tiles - 1) * made.elements
