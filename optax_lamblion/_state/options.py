"""Static, less common choices about the state."""

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
"""A tree of bools like the parameters, a prefix of one, or a function from parameters to one."""


@dataclasses.dataclass(frozen=True, eq=False)
class StateOptions:
    """How an optimizer stores its state and takes its steps: static choices, in one object.

    All of them are fixed when the optimizer is built, and none is a number that
    `optax.inject_hyperparams` could turn into an array.

    Attributes:
      block_size: Number of elements that share a scale, a power of two from 32 to 4096. Smaller
        blocks are more accurate and cost 4 / block_size bytes per element.
      codec: The levels of the 8-bit codes: `"power"` (the most accurate for optimizer state),
        `"dynamic"` (bitsandbytes' map, for exchange with it) or `"linear"`.
      min_8bit_size: Leaves with fewer elements keep float32 state. The `min_8bit_size` argument of
        an optimizer takes precedence.
      keep_32bit: Leaves that keep float32 state whatever their size: a function of the leaf's path,
        such as `lambda path: "embed" in path` (paths look like `"encoder/embed/kernel"`), or a tree
        of bools like the parameters or a prefix of one. The counterpart of bitsandbytes'
        `GlobalOptimManager`.
      stacked: Leaves that are stacks of layers along their first axis, as in scanned models: a
        function of the path or a tree of bools, as for `keep_32bit`. Every layer then has its own
        norms, for LAMB's trust ratio and for percentile clipping.
      norm_axes: Needed inside `jax.shard_map(..., check_vma=False)` and `jax.pmap`: the names of
        the mesh axes over which parameters are sharded, so that norms are summed over them. None
        reads them from the types of the state, which lack them there. Elsewhere arrays are global
        and carry their sharding.
      implementation: The code that takes a step. None selects the fastest that can run: the
        Pallas (Mosaic) kernels on NVIDIA GPUs; the Triton kernels on other GPUs and for block sizes
        2048 and 4096, if jax-triton is installed; XLA elsewhere. `"mosaic"` and `"triton"` use
        these kernels or raise; `"xla"` uses none. Leaves with fewer than 4096 elements and 32-bit
        leaves always run through XLA. To differentiate a step on a GPU, use `"xla"`. A step
        exported for a GPU on a machine without one uses kernels only if you name them.
      count_skipped: Whether the state counts the elements that steps skipped because their gradient
        was not finite. Its `skipped` is then an int32 scalar: the number over all steps so far, up
        to 2**31 - 1, and exact up to 2**24 per leaf and step. On a mesh this takes an all-reduce of
        one number per leaf.
      param_rounding: How bfloat16 and float16 parameters are rounded, if an update is smaller than
        half the distance to the next number. `"nearest"` loses it. `"stochastic"` rounds up or down
        at random, without bias; the random bits depend on the step, the leaf and the element only,
        so runs are reproducible and the same on any mesh (except inside `jax.shard_map`).
        `"compensated"` stores the difference in one byte of state per parameter, for about 24 bits
        per parameter; `full_precision` adds it. Both need `apply_fused`, with which the optimizer
        writes the parameters itself. Parameters of other dtypes are unaffected.
      update_dtype: The dtype of the updates that `update` returns. None uses the dtype that
        gradients and parameters promote to. `jnp.float32` returns unrounded updates for 16-bit
        parameters as well, so that `optax.apply_updates` rounds once, or that you can add them to a
        float32 copy. No effect under `apply_fused`, which adds before it rounds.
      page_min_size: A paged optimizer pages the state of leaves with at least this many elements;
        others stay on the device.
      page_bytes: Device memory per page, the unit in which a paged optimizer moves state; at least
        2**20. Larger leaves are split, smaller ones share a page. Float32 state counts twice,
        because it is not updated in place. Leaves with fewer than 2**20 elements are not split, nor
        are 8-bit leaves with `block_wise=False`.
      pages_in_flight: The number of pages on the device while another one is fetched, at least 1.
        State in transit takes up to `(pages_in_flight + 1) * page_bytes` of device memory.
      device_budget: Bytes of state that a paged optimizer keeps on the device permanently: leaves
        below `page_min_size` first, then the largest leaves that fit. None and 0 page every leaf
        that is not below `page_min_size`.

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
