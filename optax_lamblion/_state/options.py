"""The static choices about state that are not everyday ones."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optax_lamblion._state.names import chosen, path_string
from pallas_kernels.arithmetic.blocks import check_block_size
from pallas_kernels.arithmetic.codecs import get_codec
from pallas_kernels.arithmetic.params import ROUNDINGS
from pallas_kernels.dispatch import check_implementation

type Mask = Any | Callable[[Any], Any] | None
"""A tree of bools like the parameters, or a prefix of it, or a function that makes one of them."""


@dataclasses.dataclass(frozen=True, eq=False)
class StateOptions:
    """How the state of an optimizer is stored: its static choices, in one object.

    All of them are decided when the optimizer is built and none is a number that
    `optax.inject_hyperparams` could turn into an array.

    Attributes:
      block_size: Elements that share a scale: a power of two from 32 to 4096. Smaller blocks are
        more accurate and cost 4 / block_size bytes per element.
      codec: What the 8-bit codes mean: `"power"` (the most accurate for optimizer state),
        `"dynamic"` (bitsandbytes' map, for exchange with it) or `"linear"`.
      min_8bit_size: Leaves with fewer elements keep float32 state. The `min_8bit_size` argument of
        an optimizer goes before it.
      keep_32bit: Which leaves keep float32 state whatever their size: a function of the leaf's
        path, such as `lambda path: "embed" in path` (paths look like `"encoder/embed/kernel"`), or
        a tree of bools shaped like the parameters or a prefix of them. This is what
        `GlobalOptimManager` does in bitsandbytes.
      stacked: Which leaves are stacks of layers along their first axis, as scans over layers have
        them: a function of the path or a tree of bools, as for `keep_32bit`. Every layer then has
        norms of its own, for LAMB's trust ratio and for percentile clipping.
      norm_axes: Inside of `jax.shard_map` and `jax.pmap`, the names of the mesh axes over which
        parameters are divided, and their norms to be added up. None takes them from the types of
        the state, which `check_vma=False` does not have. Everywhere else arrays are whole, and say
        themselves how they are divided.
      implementation: Which code makes a step. None takes the fastest that can: the kernels by
        Pallas and Mosaic on NVIDIA GPUs, those by Triton on other GPUs and for block sizes 2048
        and 4096 if jax-triton is installed, XLA elsewhere. `"mosaic"` and `"triton"` take these
        kernels or raise, `"xla"` takes none. Leaves of fewer than 4096 elements and those in 32
        bits are always XLA's.
        A step that is differentiated needs `"xla"` on a GPU; one that is exported for a GPU from a
        machine without one gets kernels by name only.
      count_skipped: Whether the state counts the elements that steps have left alone because their
        gradient was not finite: its `skipped` is then an int32 scalar, the number of them in all
        steps so far (2**31 - 1 if there are more). It is exact up to 2**24 for a leaf and step. On
        a mesh it takes an all-reduce of one number for every leaf.
      param_rounding: How parameters in bfloat16 and float16 are written, which loses a step that is
        smaller than half the distance to the next number. `"nearest"` loses it. `"stochastic"`
        rounds up or down at random, without bias: from the step, the leaf and the element, so a run
        can be repeated, and is the same on any mesh (but inside of `jax.shard_map`).
        `"compensated"` keeps what is missing in a byte of state per parameter (`full_precision`
        puts both together), so that a parameter has about 24 bits. Both need `apply_fused`, where
        the optimizer writes parameters itself. Parameters in other dtypes are not concerned.
      update_dtype: None returns updates of `update` in the dtype that gradients and parameters
        promote to. `jnp.float32` returns them unrounded also where these have 16 bits, so that
        `optax.apply_updates` rounds once, or they can be added to a copy in float32. Of no effect
        under `apply_fused`, which adds before it rounds.
      page_min_size: A paged optimizer pages the state of leaves with at least so many elements; the
        others stay on the device.
      page_bytes: Room on the device for a page, what a paged optimizer moves at a time; at least
        2**20. State of larger leaves is cut into pieces, that of smaller ones goes together.
        Float32 state counts twice, because it is not overwritten. Leaves of fewer than 2**20
        elements are not cut, nor are those in 8 bits with `block_wise=False`.
      pages_in_flight: How many pages are on the device while one more is fetched; at least 1. State
        in motion takes up to `(pages_in_flight + 1) * page_bytes` there.
      device_budget: Bytes of state that a paged optimizer keeps on the device all the time: what is
        below `page_min_size`, and then as much of the rest as there is room for. None and 0 page
        all that is not below.

    Raises:
      TypeError: An option is of the wrong kind.
      ValueError: An option has a value that is not offered.

    Examples:
      >>> options = StateOptions(block_size=128, keep_32bit=lambda path: "embed" in path)
      >>> tx = lion8bit(1e-4, options=options)
    """

    block_size: int = 256
    codec: str = "power"
    min_8bit_size: int = 4096
    keep_32bit: Callable[[str], bool] | Any | None = None
    implementation: str | None = None
    stacked: Callable[[str], bool] | Any | None = None
    norm_axes: tuple[str, ...] | None = None
    count_skipped: bool = False
    param_rounding: str = "nearest"
    update_dtype: DTypeLike | None = None
    page_min_size: int = 100_000
    page_bytes: int = 2**25
    pages_in_flight: int = 2
    device_budget: int | None = None

    def __post_init__(self):
        """Checks every option."""
        if self.block_size is None:
            raise ValueError(
                "`block_size` must be a number. For one scale per tensor build the optimizer with "
                "`block_wise=False`."
            )
        check_block_size(self.block_size)
        get_codec(self.codec, True)
        check_min_8bit_size(self.min_8bit_size)
        check_implementation(self.implementation)
        _check_norm_axes(self.norm_axes)
        if not isinstance(self.count_skipped, bool):
            raise TypeError(f"`count_skipped` must be True or False, got {self.count_skipped!r}.")
        _check_param_rounding(self.param_rounding)
        _check_update_dtype(self.update_dtype)
        _check_at_least("page_min_size", self.page_min_size, 0)
        _check_at_least("page_bytes", self.page_bytes, 2**20)
        _check_at_least("pages_in_flight", self.pages_in_flight, 1)
        if self.device_budget is not None:
            _check_at_least("device_budget", self.device_budget, 0)

    def keeps_32bit(self, params):
        """A tree like `params` that says which leaves `keep_32bit` names."""
        return _named("keep_32bit", self.keep_32bit, params)

    def are_stacked(self, params):
        """A tree like `params` that says which leaves `stacked` names."""

        def check(path, stacked, p):
            if stacked and not p.ndim:
                raise ValueError(
                    f"`stacked` names {path_string(path)!r}, which has no axis of layers."
                )
            return stacked

        named = _named("stacked", self.stacked, params)
        return jax.tree_util.tree_map_with_path(check, named, params)


def _named(argument, choice, params):
    def ask(function):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: bool(function(path_string(path))), params
        )

    return chosen(argument, False if choice is None else choice, params, ask)


def _check_norm_axes(axes):
    if axes is not None and not (
        isinstance(axes, tuple | list) and all(isinstance(x, str) for x in axes)
    ):
        raise TypeError(
            f"`norm_axes` must be a tuple of names of mesh axes, or None, got {axes!r}. "
            'For one axis pass `norm_axes=("data",)`.'
        )


def _check_param_rounding(rounding):
    if rounding not in ROUNDINGS:
        known = ", ".join(f'"{name}"' for name in ROUNDINGS)
        raise ValueError(f"`param_rounding` must be one of {known}, got {rounding!r}.")


def _check_update_dtype(dtype):
    if dtype is None:
        return
    try:
        is_float32 = jnp.dtype(dtype) == jnp.float32
    except TypeError:
        is_float32 = False
    if not is_float32:
        raise ValueError(
            f"`update_dtype` must be float32, or None for the dtype that gradients and parameters "
            f"promote to, got {dtype!r}."
        )


def check_min_8bit_size(value):
    """Raises unless `value` is a whole number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"`min_8bit_size` must be a Python int, got {type(value).__name__}. Under "
            "`optax.inject_hyperparams`, which makes arrays of numbers, pass "
            '`static_args=("min_8bit_size",)` or `options=StateOptions(min_8bit_size=...)`.'
        )
    if value < 0:
        raise ValueError(f"`min_8bit_size` must be 0 or more, got {value}.")


def _check_at_least(name, value, least):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be a Python int, got {type(value).__name__}.")
    if value < least:
        raise ValueError(f"`{name}` must be {least} or more, got {value}.")


DEFAULT_OPTIONS = StateOptions()
"""What an optimizer takes that is given none."""
