"""Fresh state: zeros, in the precision and the memory of each leaf.

Whether a leaf is stored in 8 or 32 bits is decided here, once; from then on its dtype says so.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from optax_lamblion._mesh.splits import scales_sharding
from optax_lamblion._paging.filler import Filler
from optax_lamblion._paging.memory import full, mesh_sharding, tied_to_device, zeros
from optax_lamblion._paging.pages import extent_of
from optax_lamblion._paging.placement import which_are_paged
from optax_lamblion._state.checks import check_floating
from optax_lamblion._state.names import path_string
from optax_lamblion._state.types import HISTORY
from pallas_kernels.arithmetic.blocks import absmax_shape
from pallas_kernels.arithmetic.dtypes import compute_dtype
from pallas_kernels.leaf import StoredSlot


class Form(NamedTuple):
    """An array of a fresh state."""

    shape: tuple[int, ...]
    dtype: Any


def init_state(c, params):
    """Fresh state: zero moments, in the precision and the memory of each leaf.

    Args:
      c: `settings.Settings`.
      params: Parameters, or their shapes and dtypes.
    """
    jax.tree_util.tree_map_with_path(_check_param, params)
    leaves, tree = jax.tree.flatten(params)
    keep = tree.flatten_up_to(c.chosen.keeps_32bit(params))
    stacked = c.chosen.are_stacked(params)
    forms = [_forms(c, p, k) for p, k in zip(leaves, keep, strict=True)]
    on_host = [False] * len(leaves)
    if c.paged:
        extents = [
            extent_of(c.rule, form, c.block_size, residual=_residual_form(c, p))
            for p, form in zip(leaves, forms, strict=True)
        ]
        on_host = which_are_paged(extents, c.chosen)
    everywhere = _Everywhere.of(leaves)
    fields: dict[str, Any] = {"count": everywhere.zeros((), jnp.int32)}
    filler = Filler(c.chosen.page_bytes)
    for i, slot in enumerate(c.rule.slots):
        columns = list(zip(leaves, [form[i] for form in forms], on_host, strict=True))
        values = [_fresh_values(filler, *column) for column in columns]
        fields[slot.name] = tree.unflatten(values)
        if c.layout is not None:
            scales = [_fresh_scales(c, filler, *column) for column in columns]
            fields[f"{slot.name}_absmax"] = tree.unflatten(scales)
    if c.clips:
        fields["gnorm_history"] = jax.tree.map(
            lambda p, stacked: everywhere.zeros(
                (*p.shape[:1], HISTORY) if stacked else (HISTORY,), jnp.float32
            ),
            params,
            stacked,
        )
    if c.chosen.count_skipped:
        fields["skipped"] = everywhere.zeros((), jnp.int32)
    if c.keeps_residuals:
        pairs = zip(leaves, on_host, strict=True)
        fields["residual"] = tree.unflatten(_fresh_residual(c, filler, *pair) for pair in pairs)
    if c.layout is not None:
        fields["layout"] = {c.layout.entry: everywhere.full((), c.layout.number, jnp.int32)}
    state = c.state_type(**fields)
    # An array in host memory is tied to its device. The others are, too, after a step: from the
    # beginning, the second step is no other program than the first.
    return tied_to_device(state) if any(on_host) else state


def _forms(c, p, keeps_32bit):
    """The slots of a leaf, with a `Form` in place of every array."""
    if c.codes(p.shape, keeps_32bit):
        scales = Form(absmax_shape(p.shape, c.block_size), jnp.float32)
        slot = StoredSlot(Form(p.shape, jnp.uint8), scales)
    else:
        slot = StoredSlot(Form(p.shape, compute_dtype(p.dtype)))
    return (slot,) * len(c.rule.slots)


def _fresh_values(filler, p, slot, on_host):
    if on_host:
        return filler.zeros(p, p.shape, slot.values.dtype, mesh_sharding(p))
    return jnp.zeros_like(p, dtype=slot.values.dtype)


def _fresh_scales(c, filler, p, slot, on_host):
    if not slot.coded:
        return _stand_in(p, jnp.float32)
    sharding, shape = mesh_sharding(p), slot.absmax.shape
    if sharding is not None and shape != p.shape:
        sharding = scales_sharding(sharding, p.shape, shape, c.block_size)
    if on_host:
        return filler.zeros(p, shape, jnp.float32, sharding)
    if shape == p.shape:
        return jnp.zeros_like(p, dtype=jnp.float32)
    return (
        jnp.zeros(shape, jnp.float32) if sharding is None else zeros(sharding, shape, jnp.float32)
    )


def _fresh_residual(c, filler, p, on_host):
    form = _residual_form(c, p)
    if form is None:
        return _stand_in(p, jnp.int8)
    if on_host:
        return filler.zeros(p, *form, mesh_sharding(p))
    return jnp.zeros_like(p, dtype=form.dtype)


def _residual_form(c, p):
    """The `Form` of a parameter's residual, or None if it has none."""
    return Form(p.shape, jnp.int8) if c.has_residual(p.dtype) else None


def _stand_in(p, dtype):
    """One zero in place of what a leaf does not have.

    A tree needs its leaves to stay shaped like the parameters, and Orbax refuses arrays of size
    zero. It is on every device, and not worth moving.
    """
    shape, sharding = (1,) * len(p.shape), mesh_sharding(p)
    if shape == p.shape:
        return jnp.zeros_like(p, dtype=dtype)
    if sharding is None:
        return jnp.zeros(shape, dtype)
    return zeros(NamedSharding(sharding.mesh, PartitionSpec()), shape, dtype)


class _Everywhere(NamedTuple):
    """Makes arrays that are on all devices of the parameters' mesh, if they have one."""

    sharding: Any

    @classmethod
    def of(cls, params):
        shardings = [x for x in map(mesh_sharding, params) if x is not None]
        return cls(NamedSharding(shardings[0].mesh, PartitionSpec()) if shardings else None)

    def zeros(self, shape, dtype):
        """Zeros."""
        return self.full(shape, 0, dtype)

    def full(self, shape, value, dtype):
        """An array of one number."""
        if self.sharding is None:
            return jnp.full(shape, value, dtype)
        return full(self.sharding, shape, value, dtype)


def _check_param(path, p):
    name = path_string(path)
    if not hasattr(p, "dtype"):
        remedy = "Make it one with `jnp.asarray`."
        if callable(p):
            remedy = (
                "Of a model of Equinox pass those of `eqx.filter(model, eqx.is_inexact_array)`."
            )
        raise TypeError(
            f"Parameter {name!r} is a {type(p).__name__}; optimizers here need arrays. {remedy}"
        )
    check_floating("Parameter", name, p.dtype)
