"""Cases for the kernels: one leaf, called below Optax, with the gradient kept.

Compiled for every target: a Mosaic kernel is assembled for each of them anew.
"""

import functools

import jax
import jax.numpy as jnp

import pallas_kernels
from pallas_kernels.arithmetic import rules
from pallas_kernels.arithmetic.blocks import absmax_shape
from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.arithmetic.dither import Dither
from pallas_kernels.arithmetic.params import ROUNDINGS
from pallas_kernels.arithmetic.step import Spec
from pallas_kernels.mosaic import step as mosaic
from tests.deviceless.cases import Case, case, ours
from tests.deviceless.targets import TARGETS
from tests.steps import scalars_of, with_residual

SHAPE = (4096, 4096)  # whole tiles: no rows over
RAGGED = (4099, 1000)
HUGE = (2**23 + 48, 256)  # more than 2**31 elements
RULES = {x.name: x for x in (rules.LION, rules.ADAM, rules.LAMB, rules.LAMB_AMSGRAD)}
COUNTED = "lion", "adam", "lamb"
"""Of these rules instructions are counted, and every target and every size of blocks compiled."""
BF16, F32, F16 = jnp.bfloat16, jnp.float32, jnp.float16
DTYPES = {"bf16": (BF16, BF16), "f32": (F32, F32), "f32-bf16": (F32, BF16), "f16": (F16, F16)}
"""Of parameter and gradient."""
EVERYWHERE, COMPILED = ("lion", "compensated"), ("a100", "h200", "b200")
"""The rule and the rounding of parameters that are compiled for all of these targets."""
# A rule with a ratio and one without are enough for mixtures; and for float32 the smallest and the
# largest block.
COMBINED = [(r, d) for r in RULES for d in DTYPES if d in ("bf16", "f32") or r in ("lion", "lamb")]
BLOCKS = [("bf16", block) for block in (32, 64, 128, 512, 1024)] + [("f32", 32), ("f32", 1024)]


def step(
    rule, p, g, *, codec="power", decay=None, emit="params", block=256, shape=SHAPE,
    rounding="nearest", by=mosaic.step,
):  # fmt: skip
    """A `Case`: one step. State is donated, and what the result can take the place of."""
    rule = RULES[rule]
    codecs = tuple(get_codec(codec, slot.signed) for slot in rule.slots)
    spec = Spec(rule, codecs, block, decay, emit, param_rounding=rounding)
    array = jax.ShapeDtypeStruct
    number = array((), jnp.uint32)
    scalars = jax.tree.map(lambda _: array((), F32), scalars_of(rule, bias_correction=False))
    arguments = (
        array(shape, g),
        array(shape, p),
        tuple(array(shape, jnp.uint8) for _ in rule.slots),
        tuple(array(absmax_shape(shape, block), F32) for _ in rule.slots),
        scalars,
        Dither(number, number, (number,) * len(rule.slots)),
        array(shape, jnp.int8) if rounding == "compensated" else None,
    )
    donate = (1, 2, 3, 6) if emit == "params" else (0, 2, 3)
    return Case(functools.partial(with_residual(by), spec), arguments, donate)


def _add(name, *arguments, targets=tuple(TARGETS), **options):
    register = case(f"kernel/{name}", targets)
    register(functools.partial(step, *arguments, **options))


ONE = dict(targets=("h200",))
"""For what one target is enough for."""
# What is counted, and every target has to make of it.
for _rule in COUNTED:
    _add(f"{_rule}/power/bf16", _rule, BF16, BF16)
    _add(f"{_rule}/power/f32, decay", _rule, F32, F32, decay="decoupled")
    _add(f"{_rule}/dynamic/bf16", _rule, BF16, BF16, codec="dynamic", **ONE)
for _rule, _dtypes in COMBINED:
    _p, _g = DTYPES[_dtypes]
    for _emit in ("params", "updates"):
        _own = dict(decay="decoupled", emit=_emit, **ONE)
        _add(f"{_rule}/{_dtypes}/{_emit}", _rule, _p, _g, **_own)
        if _dtypes in ("bf16", "f32"):
            _add(f"{_rule}/{_dtypes}/{_emit}/ragged", _rule, _p, _g, shape=RAGGED, **_own)
# Two roundings of parameters, of which the lion's are also compiled for the other targets.
for _rule in COUNTED:
    for _rounding in ROUNDINGS[1:]:
        _which = dict(targets=COMPILED) if (_rule, _rounding) == EVERYWHERE else ONE
        _add(f"{_rule}/{_rounding}", _rule, BF16, BF16, rounding=_rounding, **_which)
for _rule in RULES:
    _add(f"{_rule}/huge", _rule, BF16, BF16, shape=HUGE, **ONE)
for _rule in COUNTED:
    for _dtypes, _block in BLOCKS:
        _add(f"{_rule}/{_dtypes}/block {_block}", _rule, *DTYPES[_dtypes], block=_block, **ONE)


@case("kernel/quantize", targets=("h200",))
def _():
    x = jax.ShapeDtypeStruct(SHAPE, BF16)
    return Case(functools.partial(pallas_kernels.quantize, implementation="mosaic"), (x,))


@case("kernel/dequantize", targets=("h200",))
def _():
    codes = jax.ShapeDtypeStruct(SHAPE, jnp.uint8)
    absmax = jax.ShapeDtypeStruct(absmax_shape(SHAPE, 256), F32)
    function = functools.partial(pallas_kernels.dequantize, dtype=BF16, implementation="mosaic")
    return Case(function, (codes, absmax))


def _equal_leaves(count):
    return {str(i): jax.ShapeDtypeStruct(SHAPE, BF16) for i in range(count)}


for _name in ("lion8bit", "lamb8bit"):
    for _fused in (True, False):
        case(f"kernel/8 leaves/{_name}/{_fused}", targets=("h200",))(
            functools.partial(ours, _name, _equal_leaves(8), _fused)
        )
