"""A leaf in pieces makes the step that it makes as a whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.arithmetic.blocks import as_rows
from pallas_kernels.arithmetic.dtypes import promote
from pallas_kernels.arithmetic.pieces import CUTTABLE, GRAIN
from pallas_kernels.arithmetic.step import ratio, sum_of_grains
from pallas_kernels.leaf import StoredSlot
from pallas_kernels.mosaic import step as mosaic
from pallas_kernels.mosaic.tile import INTERPRET
from pallas_kernels.tiled.running import Sums
from pallas_kernels.xla import step as xla
from tests.kernels.interpreted import interpreted_step
from tests.kernels.test_mosaic import Leaf, identity, xla_step
from tests.steps import Seen, SeenRounded, arrays_of, leaf_of

# In grains. Of different lengths, and the last one ragged where the leaf is.
CUTS = (0, 1, 3)


def in_pieces(module, spec, arrays, cuts=CUTS, **kwargs):
    """A step like `xla.step`, of a leaf cut after so many grains."""
    g, p, slots, absmaxes, s, dither, *residual = arrays
    leaf = leaf_of(spec, *arrays[:6], residual=residual[0] if residual else None)
    block, pairs = spec.block_size, list(zip(cuts, (*cuts[1:], None), strict=True))

    def part(x, first, last, flat):
        x = x.reshape(-1) if flat else as_rows(x, block)
        unit = GRAIN // block if flat or x.ndim == 2 else GRAIN
        return x[first * unit : None if last is None else last * unit]

    def piece(first, last):
        stored = tuple(
            StoredSlot(part(x.values, first, last, False), part(x.absmax, first, last, True))
            for x in leaf.slots
        )
        lacking = None if not residual else part(*residual, first, last, False)
        return leaf.replace(
            slots=stored, start=jnp.int32(first), p=None if to_params else p, residual=lacking
        )

    to_params = spec.emit == "params"
    target = p if to_params else jnp.zeros(p.shape, promote(g.dtype, p.dtype))
    pieces = [piece(*pair) for pair in pairs]
    call = lambda name: functools.partial(getattr(module, name), **kwargs)  # noqa: E731
    new, residuals = [], []
    if spec.rule.ratio:
        new = [call("moments")(x.replace(target=target)) for x in pieces]
        factor = ratio(sum_of_grains(jnp.concatenate([x.sums for x in new])), s)
        for x, half in zip(pieces, new, strict=True):
            made = call("apply")(x.replace(slots=half.slots, target=target), factor)
            target, residuals = made.out, [*residuals, made.residual]
    else:
        for x in pieces:
            new.append(call("step")(x.replace(target=target)))
            target, residuals = new[-1].out, [*residuals, new[-1].residual]
    columns = zip(*(x.slots for x in new), strict=True)
    stored = tuple(
        jax.tree.map(
            lambda x, *parts: jnp.concatenate([y.reshape(-1) for y in parts]).reshape(x.shape),
            whole,
            *parts,
        )
        for whole, parts in zip(leaf.slots, columns, strict=True)
    )
    skipped = sum(x.skipped for x in new) if spec.count_skipped else None
    if not residual:
        return Seen(target, *arrays_of(stored), skipped)
    joined = jnp.concatenate([x.reshape(-1) for x in residuals]).reshape(residual[0].shape)
    return SeenRounded(target, *arrays_of(stored), skipped, joined)


RAGGED, ROWS = (4 * GRAIN + 4700,), (35, 8192)
LEAVES = [
    *(
        Leaf(rule, shape=shape, emit=emit, p="bfloat16", g=g)
        for rule in ("lion", "lamb")
        for shape in (RAGGED, ROWS)
        for emit, g in (("params", "float32"), ("updates", "bfloat16"))
    ),
    Leaf(shape=RAGGED, decay="coupled", emit="updates"),
    Leaf("lamb_amsgrad", shape=ROWS, decay="coupled", block=64),
    Leaf("lamb_amsgrad", shape=RAGGED, decay=None, emit="updates", block=1024),
    Leaf("adam", shape=RAGGED, p="bfloat16"),
    Leaf("adam", shape=ROWS, p="bfloat16", g="bfloat16", emit="updates"),
    Leaf("signum", shape=RAGGED, g="bfloat16", emit="updates"),
]


def compare(whole, pieces, exact):
    (out, *state), (out_pieces, *state_pieces) = jax.tree.map(np.asarray, (whole, pieces))
    jax.tree.map(np.testing.assert_array_equal, state_pieces, state)
    # If not exact, XLA contracts other multiply-adds. Numbers are of the order of one.
    ulp = 0 if exact else float(jnp.finfo(out.dtype).eps)
    out, out_pieces = out.astype(np.float32), out_pieces.astype(np.float32)
    np.testing.assert_allclose(out_pieces, out, rtol=ulp, atol=ulp)


@pytest.mark.parametrize("leaf", LEAVES, ids=identity)
def test_xla_does_the_same_to_the_last_bit(leaf):
    shape = (CUTTABLE + leaf.shape[0],) if len(leaf.shape) == 1 else (135, leaf.shape[1])
    leaf = leaf._replace(shape=shape)
    arrays = leaf.arrays()
    whole = jax.jit(functools.partial(xla_step, leaf.spec))(*arrays)
    pieces = jax.jit(lambda *arrays: in_pieces(xla, leaf.spec, arrays))(*arrays)
    compare(whole, pieces, exact=True)


# The last piece fills tiles of a kernel but no grain.
SHORT = (0, 2, 4)
KERNELS = [pytest.param(LEAVES[4], SHORT, id="short")] + [
    pytest.param(
        leaf,
        CUTS,
        id=identity(leaf),
        # Of the two LAMBs, that with three slots in rows and that with two in a ragged leaf are
        # enough for every day.
        marks=[pytest.mark.long] if "lamb" in leaf.rule and i not in (4, 9) else [],
    )
    for i, leaf in enumerate(LEAVES)
]


@pytest.mark.parametrize(("leaf", "cuts"), KERNELS)
def test_kernels_do_the_same(leaf, cuts, monkeypatch):
    # In the order of pieces: a whole leaf sums up its tiles at once, which rounds otherwise.
    by_grains = property(lambda sums: jnp.sum(sums.of_grains(), axis=0))
    monkeypatch.setattr(Sums, "total", by_grains)
    arrays = leaf.arrays()
    whole = jax.jit(functools.partial(interpreted_step, leaf.spec))(*arrays)
    step = lambda *a: in_pieces(mosaic, leaf.spec, a, cuts, interpret=INTERPRET)  # noqa: E731
    compare(whole, jax.jit(step)(*arrays), exact=leaf.spec.rule.reads == "old")


@pytest.mark.parametrize("module", [xla, mosaic], ids=lambda module: module.__name__.split(".")[1])
@pytest.mark.parametrize("rule", ["lion", "lamb", "adam", "signum"])
def test_pieces_count_what_they_leave_alone(rule, module):
    leaf = Leaf(rule, shape=(GRAIN + 4700,))  # three elements are not finite, one of them the last
    kwargs = dict(interpret=INTERPRET) if module is mosaic else {}
    spec = leaf.spec._replace(count_skipped=True)
    pieces = jax.jit(lambda *arrays: in_pieces(module, spec, arrays, (0, 1), **kwargs))
    g, *others = leaf.arrays()
    assert float(pieces(g, *others).skipped) == 3
    assert float(pieces(jnp.nan_to_num(g, posinf=0, neginf=0), *others).skipped) == 0
