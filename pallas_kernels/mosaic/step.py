"""The step of one leaf as Pallas kernels on the Mosaic GPU backend."""

import functools
from typing import Any

from pallas_kernels.leaf import Applied, Halfway, Leaf, Stepped
from pallas_kernels.mosaic.launch import backend
from pallas_kernels.mosaic.tile import BLOCK_SIZES
from pallas_kernels.tiled import rows
from pallas_kernels.tiled import step as tiled


def why_not_blocks(block_size: int | None) -> str | None:
    """Why there are no kernels for a block size; None if there are."""
    return rows.why_not_blocks(block_size, BLOCK_SIZES)


def why_not(leaf: Leaf) -> str | None:
    """Why there is no kernel for a leaf; None if there is."""
    return tiled.why_not(leaf, BLOCK_SIZES)


def step(leaf: Leaf, *, interpret: Any = None) -> Stepped:
    """As `tiled.step.step`; `interpret` is `INTERPRET`, or None for a GPU, as everywhere here."""
    return tiled.step(backend(interpret), leaf)


def moments(leaf: Leaf, *, interpret: Any = None) -> Halfway:
    """As `tiled.step.moments`."""
    return tiled.moments(backend(interpret), leaf)


def apply(leaf: Leaf, ratio: Any, tiles: Any = None, *, interpret: Any = None) -> Applied:
    """As `tiled.step.apply`."""
    return tiled.apply(backend(interpret), leaf, ratio, tiles)


adopted = functools.partial(tiled.adopted, backend())
