"""The step of one leaf as Triton kernels."""

import functools

from jax.custom_batching import sequential_vmap

from pallas_kernels.leaf import Leaf
from pallas_kernels.tiled import rows
from pallas_kernels.tiled import step as tiled
from pallas_kernels.triton.launch import BACKEND
from pallas_kernels.triton.tile import BLOCK_SIZES


def why_not_blocks(block_size: int | None) -> str | None:
    """Why there are no kernels for a block size; None if there are."""
    return rows.why_not_blocks(block_size, BLOCK_SIZES)


def why_not(leaf: Leaf) -> str | None:
    """Why there is no kernel for a leaf; None if there is."""
    return tiled.why_not(leaf, BLOCK_SIZES)


# jax-triton cannot map a kernel over a further axis: under `jax.vmap` one leaf follows another.
step = sequential_vmap(functools.partial(tiled.step, BACKEND))
moments = sequential_vmap(functools.partial(tiled.moments, BACKEND))
apply = sequential_vmap(functools.partial(tiled.apply, BACKEND))
adopted = functools.partial(tiled.adopted, BACKEND)
