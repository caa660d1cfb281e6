"""State: what an optimizer remembers, and in which precision.

The state is a NamedTuple of trees shaped like the parameters, which is what Optax's tree functions,
Orbax and Flax all understand. Whether a leaf is stored in 8 or 32 bits is decided here, once, at
`init`; from then on its dtype says so.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from optax_lamblion._clipping import HISTORY
from optax_lamblion._layout import layout_entry
from optax_lamblion._pages import extent_of
from optax_lamblion._placement import (
    Filler,
    mesh_sharding,
    tied_to_device,
    which_are_paged,
    zeros,
)
from optax_lamblion._splits import scales_sharding
from optax_lamblion._trees import path_string
from pallas_kernels.blocks import absmax_shape
from pallas_kernels.dtypes import compute_dtype


class LionState(NamedTuple):
    """The state of a Lion optimizer. Trees are shaped like the parameters.

    - `count`: int32 scalar, the steps taken.
    - `mu`: the momentum: uint8 codes in the parameter's shape, or float32.
    - `mu_absmax`: float32 scales of the codes, one per block (see `pallas_kernels.quantize`); for a
      float32 leaf one unused zero. None if no leaf can be 8-bit.
    - `gnorm_history`: the last 100 squared gradient norms per leaf, float32, or None without
      percentile clipping.
    - `layout`: what the codes mean, as the name of its only entry, such as `"power_256_v2"` (codec,
      block size, format); the entry itself is an int32 zero. None in 32 bits.
    - `skipped`: int32 scalar, the elements that were left alone in all steps because their gradient
      was not finite; None without `StateOptions(count_skipped=True)`.

    Zeros are a fresh state, for the whole of it or a part: `mu=jnp.where(part, 0, state.mu)` makes
    that part begin anew.
    """

    count: Any
    mu: Any
    mu_absmax: Any = None
    gnorm_history: Any = None
    layout: Any = None
    skipped: Any = None


class LambState(NamedTuple):
    """The state of a LAMB optimizer. Trees are shaped like the parameters.

    As `LionState`, with the second moment `nu` and, with `amsgrad`, its bias-corrected running
    maximum `nu_max` (None without).
    """

    count: Any
    mu: Any
    mu_absmax: Any = None
    nu: Any = None
    nu_absmax: Any = None
    nu_max: Any = None
    nu_max_absmax: Any = None
    gnorm_history: Any = None
    layout: Any = None
    skipped: Any = None


class Form(NamedTuple):
    """An array of a fresh state."""

    shape: tuple[int, ...]
    dtype: Any


def init_state(
    state_type, rule, codecs, params, *, bits, layout, min_8bit_size, options, clipping, paged
):
    """Fresh state: zero moments, in the precision and the memory of each leaf.

    Args:
      state_type: `LionState` or `LambState`.
      rule: The `Rule`.
      codecs: Codec of every slot by its name.
      params: Parameters, or their shapes and dtypes.
      bits: 8 or 32.
      layout: The `Layout` of 8-bit leaves.
      min_8bit_size: Leaves with fewer elements are 32-bit.
      options: `StateOptions`.
      clipping: Whether gradient norms are remembered.
      paged: Whether large leaves' state goes to host memory.
    """
    block_size = layout.block_size
    jax.tree_util.tree_map_with_path(_check_param, params)
    leaves, treedef = jax.tree.flatten(params)
    keep = treedef.flatten_up_to(options.keeps_32bit(params))
    stacked = options.are_stacked(params)

    def forms(p, keep):  # slots and scales
        if bits == 8 and not keep and math.prod(p.shape) >= max(min_8bit_size, 1):
            scales = Form(absmax_shape(p.shape, block_size), jnp.float32)
            return [(Form(p.shape, jnp.uint8), scales) for _ in codecs]
        # One zero where there are no blocks: a tree needs its leaves to stay shaped like the
        # parameters, and Orbax refuses arrays of size zero.
        slot = Form(p.shape, compute_dtype(p.dtype))
        return [(slot, Form((1,) * len(p.shape), jnp.float32)) for _ in codecs]

    columns = [forms(p, k) for p, k in zip(leaves, keep, strict=True)]
    on_host = [False] * len(leaves)
    if paged:
        extents = [
            extent_of(rule, [slot for slot, _ in c], [scale for _, scale in c], block_size)
            for c in columns
        ]
        on_host = which_are_paged(extents, options)
    filler = Filler(options.page_bytes)

    def make(p, form, on_host, coded=True):
        sharding = mesh_sharding(p)
        if sharding is not None and form.shape != p.shape:
            # What stands for scales that are not there is on every device.
            axes = sharding if coded else NamedSharding(sharding.mesh, PartitionSpec())
            sharding = scales_sharding(axes, p.shape, form.shape, block_size)
        if on_host:
            return filler.zeros(p, form.shape, form.dtype, sharding)
        if form.shape == p.shape:
            return jnp.zeros_like(p, dtype=form.dtype)
        if sharding is not None:
            return zeros(sharding, form.shape, form.dtype)
        return jnp.zeros(form.shape, form.dtype)

    shardings = [x for x in map(mesh_sharding, leaves) if x is not None]

    def make_everywhere(shape, dtype):
        if not shardings:
            return jnp.zeros(shape, dtype)
        return zeros(NamedSharding(shardings[0].mesh, PartitionSpec()), shape, dtype)

    fields: dict[str, Any] = {"count": make_everywhere((), jnp.int32)}
    for i, name in enumerate(codecs):
        rows = list(zip(leaves, columns, on_host, strict=True))
        fields[name] = treedef.unflatten([make(p, c[i][0], host) for p, c, host in rows])
        if bits == 8:
            fields[f"{name}_absmax"] = treedef.unflatten(
                # What stands for the scales of a leaf without codes is not worth moving.
                [
                    make(p, c[i][1], host and is_coded, is_coded)
                    for p, c, host in rows
                    for is_coded in [c[i][0].dtype == jnp.uint8]
                ]
            )
    if clipping:
        fields["gnorm_history"] = jax.tree.map(
            lambda p, stacked: make_everywhere(
                (*p.shape[:1], HISTORY) if stacked else (HISTORY,), jnp.float32
            ),
            params,
            stacked,
        )
    if options.count_skipped:
        fields["skipped"] = make_everywhere((), jnp.int32)
    if bits == 8:
        fields["layout"] = layout_entry(layout, make_everywhere)
    state = state_type(**fields)
    # An array in host memory is tied to its device. The others are, too, after a step: from the
    # beginning, the second step is no other program than the first.
    return tied_to_device(state) if any(on_host) else state


def paged_leaves(rule, state, block_size, options):
    """A tree like the parameters, or its moments, that says which leaves of a state are paged."""
    names = [slot.name for slot in rule.slots]
    slots = [jax.tree.leaves(getattr(state, name)) for name in names]
    scales = [jax.tree.leaves(getattr(state, f"{name}_absmax")) for name in names]
    scales = [x or [None] * len(slots[0]) for x in scales]
    columns = zip(zip(*slots, strict=True), zip(*scales, strict=True), strict=True)
    flags = which_are_paged([extent_of(rule, *column, block_size) for column in columns], options)
    return jax.tree.structure(state.mu).unflatten(flags)


def _check_param(path, p):
    if not hasattr(p, "dtype"):
        raise TypeError(
            f"Parameter {path_string(path)!r} is a {type(p).__name__}; optimizers here need "
            "arrays. Make it one with `jnp.asarray`."
        )
    if not jnp.issubdtype(p.dtype, jnp.floating):
        raise TypeError(
            f"Parameter {path_string(path)!r} has dtype {p.dtype}; optimizers here need "
            "floating-point parameters. Leave it out with `optax.masked` or `optax.partition`."
        )


def check_leaf(name, g, slots, absmaxes, block_size):
    """Raises `ValueError` where a gradient and its state do not belong together."""
    for field, x, absmax in zip(*slots, absmaxes, strict=True):
        if x.shape != g.shape:
            raise ValueError(
                f"State leaf {field}[{name!r}] has shape {x.shape}, but the gradient has "
                f"{g.shape}. Make a new state with `tx.init(params)`."
            )
        if x.dtype != jnp.uint8:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"State leaf {field}[{name!r}] has dtype {x.dtype}; it should be uint8 codes "
                    "or floating point. Make a new state with `tx.init(params)`."
                )
            continue
        expected = absmax_shape(x.shape, block_size)
        if absmax is None or absmax.shape != expected:
            has = "no scales" if absmax is None else f"scales of shape {absmax.shape}"
            raise ValueError(
                f"State leaf {field}[{name!r}] has {has}; its codes of shape {x.shape} need "
                f"{expected}. Make a new state with `tx.init(params)`."
            )
