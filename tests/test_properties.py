"""What holds for all inputs of a kind, where brute force can say what is right.

Examples are the same in every run and few, as each may compile something; `./dev fuzz` has others.
"""

import itertools
import math

import hypothesis
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from optax_lamblion._mesh.splits import split_for
from optax_lamblion._paging import pages
from pallas_kernels.arithmetic.pieces import GRAIN
from pallas_kernels.arithmetic.shards import Place, keeps_blocks
from tests import fuzzing, oracles
from tests.kernels.codec_judge import check_layout, check_nearest, quantize

few, many = fuzzing.settings(25), fuzzing.settings(300)

# Few shapes, as each is compiled; with short last blocks, and one element too many or too few.
SHAPES = st.sampled_from([(1,), (31,), (257,), (3, 96), (2, 256), (7, 300), (1023,), (4097,)])
BLOCKS = st.sampled_from([32, 64, 256, None])
# Numbers on the edge of something: the smallest normal one (XLA may take smaller ones for 0), the
# largest that is stored.
EDGES = [0.0, -0.0, 2.0**-126, 1e-30, 0.5, 1.0, 2.0**126, 3e38, np.nan, np.inf, -np.inf]


@st.composite
def arrays(draw):
    """Arrays whose largest elements are where a loop could miss them, and edge values elsewhere."""
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = rng.standard_normal(shape).astype(np.float32) * np.float32(
        draw(st.sampled_from([1, 1e-20]))
    )
    flat, block = x.reshape(-1), draw(st.sampled_from([32, 256]))
    for place in draw(st.lists(st.sampled_from(["first", "last", "edge", "end"]), max_size=3)):
        at = {"first": 0, "last": flat.size - 1, "edge": (flat.size - 1) // block * block}
        at["end"] = min(block, flat.size) - 1
        flat[at[place]] = draw(st.sampled_from([-7.0, 7.0])) * np.abs(flat).max()
    for value in draw(st.lists(st.sampled_from(EDGES), max_size=4)):
        flat[draw(st.integers(0, flat.size - 1))] = value
    return x


@few
@hypothesis.given(
    arrays(), BLOCKS, st.sampled_from(oracles.CODECS), st.booleans(), st.sampled_from([False, True])
)
def test_quantize_stores_the_nearest_level(x, block, codec, signed, keep_nonzero):
    arguments = dict(block_size=block, codec=codec, signed=signed)
    codes, absmax = quantize(jnp.asarray(x), keep_nonzero=keep_nonzero, **arguments)
    # What is documented: 0 for what is not finite, 2**126 at most, and no sign without signs.
    stored = np.clip(np.where(np.isfinite(x), x, 0), -(2.0**126) if signed else 0, 2.0**126)
    check_layout(stored.astype(np.float32), codes, absmax, block)
    if not keep_nonzero:
        check_nearest(stored, codes, absmax, block, codec, signed)
    # Where the inverse of a scale is no normal number, there is nothing to be kept.
    blocks = oracles.block_of(x.size, block or x.size)
    scale = np.asarray(absmax).reshape(-1)[blocks].reshape(x.shape)
    if keep_nonzero:
        assert np.all(np.asarray(codes)[(stored != 0) & (scale >= 2.0**-126)] != 0)


def divisors(n):
    return [k for k in range(1, n + 1) if n % k == 0]


@st.composite
def shards(draw):
    """A tensor, a way to divide every axis, and a block size."""
    shape = tuple(
        draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 64, 96]), min_size=1, max_size=3))
    )
    counts = tuple(draw(st.sampled_from(divisors(n))) for n in shape)
    return shape, counts, draw(st.sampled_from([32, 64]))


@many
@hypothesis.given(shards(), st.randoms(use_true_random=False))
def test_blocks_of_a_shard_are_those_of_its_tensor(given, random):
    shape, counts, block = given
    lengths = tuple(n // k for n, k in zip(shape, counts, strict=True))
    at = [random.randrange(k) * n for k, n in zip(counts, lengths, strict=True)]
    index = tuple(slice(i, i + n) for i, n in zip(at, lengths, strict=True))
    # The number of the block of every element, in the tensor, and in the shard by itself.
    whole = (np.arange(math.prod(shape)) // block).reshape(shape)[index].reshape(-1)
    alone = np.arange(math.prod(lengths)) // block
    pairs = set(zip(alone.tolist(), whole.tolist(), strict=True))
    one_to_one = len(pairs) == len(set(alone.tolist())) == len(set(whole.tolist()))
    sizes = np.bincount(np.unique(whole, return_inverse=True)[1])
    in_tensor = np.bincount(np.arange(math.prod(shape)) // block)[np.unique(whole)]
    is_whole = one_to_one and (sizes == in_tensor).all()
    if not keeps_blocks(shape, lengths, block):
        return  # it may be more careful than it need be; `test_places` says where it is not to be
    assert is_whole
    place = Place(shape, lengths, tuple(jnp.uint32(i) if i else None for i in at))
    numbers = place.block(jnp.arange(alone[-1] + 1, dtype=jnp.uint32), block)
    assert {(i, int(n)) for i, n in enumerate(np.asarray(numbers))} == pairs


@many
@hypothesis.given(shards(), st.data())
def test_a_split_divides_evenly_and_cuts_no_block(given, data):
    shape, _, block = given
    sizes = {"a": 2, "b": 3, "c": 4}
    names = data.draw(st.permutations(list(sizes)))
    axes, at = [], 0
    for _ in shape:
        count = data.draw(st.integers(0, len(names) - at))
        axes.append(tuple(names[at : at + count]))
        at += count
    split = split_for(shape, [tuple(axes)], sizes, block)
    kept = [tuple(x for x in (entry,) if x) if isinstance(entry, str) else tuple(entry or ())
            for entry in (*split.spec, *[None] * (len(shape) - len(split.spec)))]  # fmt: skip
    assert all(k == a[: len(k)] for k, a in zip(kept, axes, strict=True))  # the outermost stay
    counts = [math.prod(sizes[name] for name in k) for k in kept]
    assert all(n % k == 0 for n, k in zip(shape, counts, strict=True))
    lengths = tuple(n // k for n, k in zip(shape, counts, strict=True))
    assert keeps_blocks(shape, lengths, block)


@many
@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 30 * 2**20), st.booleans(), st.booleans()), max_size=12),
    st.integers(2**20, 2**24),
    st.integers(1, 4),
)
def test_every_element_is_on_one_page_for_every_part(leaves, page_bytes, in_flight):
    extents = [pages.Extent(n, 2 * n, 2 * n, can, two) for n, can, two in leaves]
    made = pages.make(extents, page_bytes, in_flight)
    parts = list(itertools.chain.from_iterable(made))
    for i, extent in enumerate(extents):
        mine = [part for part in parts if part.leaf == i]
        if [part.phase for part in mine] == ["whole"]:
            continue
        for phase in ("moments", "apply") if extent.two_parts else ("step",):
            grains = [
                g for part in mine if part.phase == phase for g in range(part.begin, part.end)
            ]
            assert sorted(grains) == list(range(-(-extent.size // GRAIN)))
        assert {part.phase for part in mine} <= {"moments", "apply", "step"}
