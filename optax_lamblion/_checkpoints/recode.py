"""Arrays of a state: from the form in which they are stored to another one."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_lamblion._checkpoints.places import put
from optax_lamblion._paging.memory import fetch, is_traced
from optax_lamblion._state.checks import check_history, check_slot, shapes_tell, told_apart
from optax_lamblion._state.layout import Layout, layout_of
from optax_lamblion._state.names import path_string
from optax_lamblion._state.types import STATES
from pallas_kernels import dequantize, quantize
from pallas_kernels.arithmetic.rules import ADAM_AMSGRAD

SLOTS = {slot.name: slot for slot in ADAM_AMSGRAD.slots}
"""Every slot that a state may have; Lion's only one is the first of Adam's."""


class Stored(NamedTuple):
    """A slot of one leaf, as it is stored.

    - `x`: uint8 codes, or floating point.
    - `absmax`: the scales of codes.
    - `layout`: what codes mean.
    """

    x: Any
    absmax: Any = None
    layout: Layout | None = None


class Source(NamedTuple):
    """What becomes a state.

    - `count`: the steps taken.
    - `slots`: the slots by name and leaf.
    - `history`: the gradient norms by leaf.
    - `skipped`: the elements that were left alone.
    - `residual`: what parameters of 16 bits lack, by leaf.
    """

    count: Any
    slots: dict[str, dict[str, Stored]]
    history: dict[str, Any] | None = None
    skipped: Any = None
    residual: dict[str, Any] | None = None


def is_ours(node) -> bool:
    """Whether it is the state of an optimizer of this package."""
    return isinstance(node, STATES)


def fill(like, source, layout):
    """The state of the form of `like`, with the content of a `Source`.

    Args:
      like: A state of which every array is a `jax.ShapeDtypeStruct` that says where it goes.
      source: A `Source` that has every slot of every leaf.
      layout: The `Layout` of `like`, or None in 32 bits.
    """
    fields: dict[str, Any] = dict.fromkeys(like._fields)
    fields["count"] = put(jnp.asarray(source.count, jnp.int32), like.count)
    for name in [name for name in SLOTS if getattr(like, name, None) is not None]:
        rows, treedef = jax.tree_util.tree_flatten_with_path(getattr(like, name))
        scales = getattr(like, f"{name}_absmax")
        scales = [None] * len(rows) if scales is None else treedef.flatten_up_to(scales)
        pairs = []
        for (path, x), absmax in zip(rows, scales, strict=True):
            leaf = path_string(path)
            new = recode(f"{name}[{leaf!r}]", source.slots[name][leaf], x, absmax, layout, name)
            pairs.append([put(*pair) for pair in zip(new, (x, absmax), strict=True)])
        fields[name] = treedef.unflatten([x for x, _ in pairs])
        if like.layout is not None:
            fields[f"{name}_absmax"] = treedef.unflatten([absmax for _, absmax in pairs])
    if like.gnorm_history is not None:
        known = source.history or {}
        fields["gnorm_history"] = jax.tree_util.tree_map_with_path(
            lambda path, x: put(_history(path_string(path), known, x), x), like.gnorm_history
        )
    if like.skipped is not None:
        skipped = 0 if source.skipped is None else source.skipped
        fields["skipped"] = put(jnp.asarray(skipped, jnp.int32), like.skipped)
    if like.residual is not None:
        known = source.residual or {}
        fields["residual"] = jax.tree_util.tree_map_with_path(
            lambda path, x: put(_residual(path_string(path), known, x), x), like.residual
        )
    if like.layout is not None:
        number = layout_of(like.layout).number
        fields["layout"] = jax.tree.map(
            lambda x: put(jnp.full((), number, x.dtype), x), like.layout
        )
    return type(like)(**fields)


def recode(leaf, stored, like, like_absmax, layout, name):
    """A slot of a leaf in the form of `like`: `(x, absmax)`."""
    check_stored(leaf, stored, like.shape)
    refuse_broken(leaf, stored, name)
    x, absmax, has = stored
    if like.dtype == jnp.uint8:
        if x.dtype == jnp.uint8 and has == layout:
            return x, absmax
        slot, values = SLOTS[name], _values(stored, name, jnp.float32)
        return quantize(
            values,
            block_size=layout.block_size,
            codec=layout.codec,
            signed=slot.signed,
            keep_nonzero=slot.second_moment,
            implementation="xla",
        )
    unused = None if like_absmax is None else jnp.zeros(like_absmax.shape, like_absmax.dtype)
    return x if x.dtype == like.dtype else _values(stored, name, like.dtype), unused


def stored_leaves(state, name="mu"):
    """A slot of a state, as a `Stored` for every leaf by its path."""
    rows, treedef = jax.tree_util.tree_flatten_with_path(getattr(state, name))
    scales = getattr(state, f"{name}_absmax")
    scales = [None] * len(rows) if scales is None else treedef.flatten_up_to(scales)
    layout = layout_in(state)
    return {
        path_string(path): Stored(x, absmax, layout)
        for (path, x), absmax in zip(rows, scales, strict=True)
    }


def layout_in(state):
    """The layout of a state; None in 32 bits."""
    return None if state.layout is None else layout_of(state.layout)


def check_stored(leaf, stored, shape):
    """Raises `ValueError` unless what is stored can be the slot of a parameter of that shape."""
    x, absmax, layout = stored
    block_size = None if layout is None else layout.block_size
    check_slot(leaf, x, absmax, shape, block_size, of="its parameter", any_floating=True)


def refuse_broken(leaf, stored, name):
    """Raises `ValueError` if a slot has numbers that no step leaves behind.

    Those are NaN and infinities; of scales, and of second moments, negative numbers too. What is
    traced has no numbers to look at.
    """
    is_coded = stored.x.dtype == jnp.uint8
    x = stored.absmax if is_coded else stored.x
    not_negative = is_coded or SLOTS[name].second_moment
    if isinstance(x, Tracer) or is_traced():
        return
    if isinstance(x, jax.Array):
        # In the memory of the device, and leaf by leaf: the host may not have all of a leaf, nor
        # the device room for two. NumPy's view of an array would keep a step from writing over it.
        broken = int(_broken_on_device(fetch(x), not_negative))
    else:
        broken = int(_broken(np.asarray(x), not_negative, np))
    if not shapes_tell(stored.x, stored.absmax):
        # What is in memory by now can be looked at.
        told_apart(leaf, np.asarray(fetch(stored.x)), np.asarray(fetch(stored.absmax)))
    if broken:
        what = "scales" if is_coded else "numbers"
        kinds = "NaN, infinite or negative" if not_negative else "NaN or infinite"
        raise ValueError(
            f"State leaf {leaf} has {what} that are {kinds} ({broken} of {x.size}). What "
            "was saved is damaged, or the run had diverged before. Take an earlier checkpoint, "
            "or reset the leaf: set all of its moments and scales to zero."
        )


def _broken(x, not_negative, numpy):
    sound = (x >= 0 if not_negative else x > -np.inf) & (x < np.inf)
    return numpy.sum(~sound, dtype=np.int32)


_broken_on_device = jax.jit(functools.partial(_broken, numpy=jnp), static_argnums=1)


def _values(stored, name, dtype):
    """What is stored, in floating point and in the memory of the device."""
    x = fetch(stored.x)
    if x.dtype != jnp.uint8:
        return x.astype(dtype)
    absmax = fetch(stored.absmax)
    arrays = [a for a in (x, absmax) if not isinstance(a, Tracer)]
    if len(arrays) == 2 and x.sharding.device_set != absmax.sharding.device_set:
        # Orbax restores a state that was never stepped to where it was made: its scales to the
        # default device. From NumPy they follow the codes.
        absmax = np.asarray(absmax)
    return dequantize(
        x,
        absmax,
        block_size=stored.layout.block_size,
        codec=stored.layout.codec,
        signed=SLOTS[name].signed,
        dtype=dtype,
    )


def _residual(leaf, known, like):
    """The residual of a parameter in the form of `like`: zeros where nothing was saved.

    A parameter of another dtype has one zero in its place, and none of it goes over.
    """
    x = known.get(leaf)
    if x is None:
        return jnp.zeros(like.shape, like.dtype)
    if x.dtype != jnp.int8:
        raise ValueError(
            f"State leaf residual[{leaf!r}] has dtype {x.dtype}; it should be int8. If it was "
            "cast, cast it back, or remove the residuals from the state to continue without them."
        )
    return x if x.shape == like.shape else jnp.zeros(like.shape, like.dtype)


def _history(leaf, known, like):
    if leaf not in known:
        return jnp.zeros(like.shape, like.dtype)
    check_history(leaf, known[leaf], like.shape)
    return known[leaf]
