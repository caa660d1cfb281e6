"""Pages: every leaf is on them once; they are small enough, and in an order for streaming."""

import itertools

import numpy as np
import pytest

from optax_lamblion._paging import pages
from optax_lamblion._paging.pages import Extent
from pallas_kernels.arithmetic.pieces import CUTTABLE, GRAIN

IN_FLIGHT = 2
# Of what is asked for, a page may use three quarters, as one more is on its way out, less an
# eighth.
ROOM = 2**20
PAGE = ROOM * 4 * 8 // (3 * 7) + 1


def extents(seed):
    """Leaves of many sizes, with one to eight bytes of state an element."""
    rng = np.random.default_rng(seed)
    sizes = (10 ** rng.uniform(3, 7.5, rng.integers(1, 30))).astype(int).tolist()
    bytes_each = int(rng.choice([1, 2, 8]))
    two_parts = bool(rng.integers(2))
    return [Extent(size, size * bytes_each, size * bytes_each, True, two_parts) for size in sizes]


@pytest.mark.parametrize("seed", range(20))
def test_every_element_is_on_a_page_once_for_every_part(seed):
    leaves = extents(seed)
    made = pages.make(leaves, PAGE, IN_FLIGHT)
    for i, leaf in enumerate(leaves):
        parts = [part for page in made for part in page if part.leaf == i]
        if not leaf.pieces(ROOM):
            assert [part.phase for part in parts] == ["whole"]
            continue
        phases = ["moments", "apply"] if leaf.two_parts else ["step"]
        assert [k for k, _ in itertools.groupby(part.phase for part in parts)] == phases
        for phase in phases:
            ends = [(part.begin, part.end) for part in parts if part.phase == phase]
            assert [b for b, _ in ends] == [0, *(e for _, e in ends[:-1])]
            assert ends[-1][1] == -(-leaf.size // GRAIN)


@pytest.mark.parametrize("seed", range(20))
def test_no_page_is_larger_than_asked_for(seed):
    leaves = extents(seed)
    for page in pages.make(leaves, PAGE, IN_FLIGHT):
        room = 0
        for part in page:
            leaf = leaves[part.leaf]
            if part.phase == "whole":
                room += leaf.room
            else:
                elements = min(part.end * GRAIN, leaf.size) - part.begin * GRAIN
                room += elements * leaf.room // leaf.size
        # Below this a leaf is not cut.
        assert room <= ROOM or (len(page) == 1 and leaves[page[0].leaf].size < CUTTABLE)


def test_small_leaves_share_a_page():
    leaves = [Extent(300_000, 300_000, 300_000)] * 7
    made = pages.make(leaves, PAGE, IN_FLIGHT)
    assert [[part.leaf for part in page] for page in made] == [[0, 1, 2], [3, 4, 5], [6]]


def test_pieces_are_as_few_and_as_even_as_can_be():
    assert Extent(8 * 2**20, 8 * 2**20, 8 * 2**20).pieces(2**22) == [(0, 64), (64, 128)]
    assert Extent(9 * 2**20, 9 * 2**20, 9 * 2**20).pieces(2**22) == [(0, 48), (48, 96), (96, 144)]
    assert Extent(8 * 2**20, 8 * 2**20, 8 * 2**20, can_be_cut=False).pieces(2**22) == []


def test_pieces_of_a_leaf_are_apart_where_there_are_others():
    """So that one is fetched while another is stored, which an array alone does not allow."""
    leaf = Extent(8 * 2**20, 8 * 2**20, 8 * 2**20)
    order = [page[0].leaf for page in pages.make([leaf] * 3, PAGE * 2, IN_FLIGHT)]
    assert len(order) == 3 * 4 and all(len({*order[i : i + 3]}) == 3 for i in range(len(order) - 2))
    # And what is large is not left for the end.
    small = Extent(10**6, 10**6, 10**6)
    order = [page[0].leaf for page in pages.make([small] * 6 + [leaf], PAGE * 2, IN_FLIGHT)]
    assert np.diff(np.flatnonzero(np.asarray(order) == 6)).min() >= 2
    assert [page[0].leaf for page in pages.make([leaf], PAGE * 2, IN_FLIGHT)] == [0, 0, 0, 0]


def test_the_order_is_that_of_the_sizes_alone():
    assert pages.make(extents(3), PAGE, IN_FLIGHT) == pages.make(extents(3), PAGE, IN_FLIGHT)
