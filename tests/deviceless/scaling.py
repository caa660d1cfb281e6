"""The smallest kernels that tell whether the harness sees what it should: they scale an array.

Tests of the harness know by hand what these move and return; see `test_harness.py`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from tests.deviceless.cases import Case, case
from tests.deviceless.targets import TARGETS

ROWS, WIDTH, TILE = 64, 256, 16
MATRIX = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
FACTOR = jax.ShapeDtypeStruct((1,), jnp.float32)
# A warp takes a row: 32 lanes with 8 elements each.
_LAYOUT = plgpu.Layout.TILED(
    plgpu.Tiling(((4, WIDTH), (8,))), warp_dims=(-3,), lane_dims=(-2,), vector_dim=-1
)
_ROW = plgpu.Layout.WG_STRIDED((WIDTH,), vec_size=2)


def _load(ref, index, layout=_LAYOUT):
    return plgpu.load(ref.at[index], layout=layout, optimized=False)


def _store(ref, index, value):
    if hasattr(plgpu, "store"):
        plgpu.store(ref.at[index], value, optimized=False)
    else:  # before jax 0.12
        ref[index] = value


def _launch(body, *args, grid=ROWS // TILE, **kwargs):
    return plgpu.kernel(body, grid=(grid,), grid_names=("i",), **kwargs)(*args)


def _rows():
    return pl.ds(lax.axis_index("i") * TILE, TILE)


def _scale(factor, x):
    _store(x, _rows(), _load(x, _rows()) * factor[0])


@jax.jit
def scale(factor, x):
    """`factor * x`, written over `x`."""
    ref = jax.new_ref(x)
    _launch(_scale, factor, ref, kernel_name="harness_scale")
    return jax.freeze(ref)


def _scale_into(factor, unused, x, y, z):
    del unused
    value = _load(x, _rows()) * factor[0]
    _store(y, _rows(), value)
    _store(z, _rows(), value)


@jax.jit
def scale_into(factor, x, y):
    """`factor * x` twice: written over `y` without reading it, and into a new array."""
    source, target = jax.new_ref(x), jax.new_ref(y)
    new = _launch(
        _scale_into,
        factor,
        factor,
        source,
        target,
        kernel_name="harness_scale_into",
        out_type=jax.typeof(x),
    )
    return jax.freeze(source), jax.freeze(target), new


def _scale_rows(factor, x):
    @pl.loop(0, ROWS)
    def _(row):
        _store(x, row, _load(x, row, _ROW) * factor[0])


@jax.jit
def scale_rows(factor, x):
    """Like `scale`, by one block of threads with a loop over rows."""
    ref = jax.new_ref(x)
    _launch(_scale_rows, factor, ref, grid=1, kernel_name="harness_scale_rows")
    return jax.freeze(ref)


def _ambiguous(factor, x):
    def shift(factor, x):
        _store(x, _rows(), _load(x, _rows()) + factor[0])

    ref = jax.new_ref(x)
    _launch(_scale, factor, ref, kernel_name="harness_ambiguous")
    _launch(shift, factor, ref, kernel_name="harness_ambiguous")
    return jax.freeze(ref)


def _twice(factor, x, y):
    return scale(factor, x), scale(factor, y)


def _while(factor, x):
    return lax.fori_loop(0, 3, lambda _, x: scale(factor, x), x)


def _fails(x):
    raise RuntimeError(f"a case that fails, on {x.shape}")


def _pad(x):
    return jnp.pad(x, ((0, 1), (0, 0)))


def _first_rows(x):
    return 2 * x[:TILE]


def _set_rows(x, y):
    return x.at[:TILE].set(y)


def _norm(x):
    return jnp.sum(x * x, axis=1)


def _chosen_on_host(x, y):
    x, y = jax.device_put((x, y), jax.memory.Space.Host)
    return jnp.where(jnp.sum(x) > 0, x, y)


def _same(x):
    return x


_CASES = {
    "in_place": Case(scale, (FACTOR, MATRIX), donate=(1,)),
    "not_donated": Case(scale, (FACTOR, MATRIX)),
    "into": Case(scale_into, (FACTOR, MATRIX, MATRIX), donate=(1, 2)),
    "twice": Case(_twice, (FACTOR, MATRIX, MATRIX), donate=(1, 2)),
    "rows": Case(scale_rows, (FACTOR, MATRIX), donate=(1,)),
    "while": Case(_while, (FACTOR, MATRIX), donate=(1,)),
    "ambiguous": Case(_ambiguous, (FACTOR, MATRIX), donate=(1,)),
    "fails": Case(_fails, (MATRIX,)),
    "pad": Case(_pad, (MATRIX,)),
    "first_rows": Case(_first_rows, (MATRIX,)),
    "set_rows": Case(
        _set_rows, (MATRIX, jax.ShapeDtypeStruct((TILE, WIDTH), jnp.float32)), donate=(0,)
    ),
    "norm": Case(_norm, (MATRIX,)),
    "chosen_on_host": Case(_chosen_on_host, (MATRIX, MATRIX)),
}
for _name, _case in _CASES.items():
    _targets = tuple(TARGETS) if _name == "in_place" else ("h200",)
    case(f"harness/{_name}", targets=_targets)(functools.partial(_same, _case))
