"""From the state of one optimizer to that of another: other bits, blocks, codec or placement."""

from typing import Any

import jax

from optax_lamblion._layout import layout_of, refuse_layout
from optax_lamblion._placement import KIND, memory_kind
from optax_lamblion._recode import OURS, check_stored, fill, put, with_places
from optax_lamblion._saved import Saved
from optax_lamblion._trees import path_string


def convert_state(state, params, tx) -> Any:
    """The state of one optimizer in the form that another one keeps.

    For training that goes on with other `bits`, another block size or codec, paged instead of
    resident, with other leaves in 32 bits; and for what a checkpoint library restored without a
    target, as dicts and lists. Moments are decoded and stored again, leaf by leaf; what is in the
    right form already is passed on as it is, bit for bit.

    Args:
      state: The state of Lion or LAMB, with that of the transformations around it: as the optimizer
        returned it, or as Orbax or `flax.serialization` restored it. Also one of `optax.lion` and
        `optax.lamb` (`scale_by_lion` and `scale_by_adam`).
      params: Parameters, or their `jax.ShapeDtypeStruct`. If they are on a mesh, the state goes
        where `state_sharding` says.
      tx: The transformation that is to go on: a `lion8bit`, or a chain with one of them.

    Returns:
      A state of `tx`. With `percentile_clipping`, and none in `state`, gradient norms start anew.

    Raises:
      ValueError: The state is not one of the same kind of optimizer for these parameters: leaves
        are missing, have another shape or dtype, or have no place. The message names the leaf, and
        `state` is as it was.

    Examples:
      >>> params = {"w": jnp.ones((64, 256))}
      >>> state = lion32bit(1e-4).init(params)
      >>> tx = lion8bit(1e-4)
      >>> state = convert_state(state, params, tx)
      >>> state.mu["w"].dtype, list(state.layout)
      (dtype('uint8'), ['power_256_v1'])
      >>> updates, state = tx.update(params, state, params)
    """
    fresh = with_places(jax.eval_shape(tx.init, params), params)
    saved = Saved(state)

    def convert(path, like):
        name = path_string(path)
        if not isinstance(like, OURS):
            return put(saved.take(name, like.shape, like.dtype), like)
        source, _ = saved.source(name, like)
        return fill(like, source, layout_in(like))

    out = jax.tree_util.tree_map_with_path(convert, fresh, is_leaf=is_ours)
    saved.refuse_the_rest()
    return out


def restore_target(tx, params, saved, *, shardings=None, convert=False) -> Any:
    """What to restore a saved state into: shapes, dtypes, and where every array goes.

    For the target of `orbax.checkpoint`, which restores every array straight to its place: shards
    to their devices, whatever mesh they were saved from, and paged state to host memory. Nothing is
    read before it is known that the optimizer can go on with what was saved.

    Args:
      tx: The transformation that is to go on.
      params: Parameters, or their `jax.ShapeDtypeStruct`.
      saved: What a checkpoint says of the state in it: a tree of objects with `shape` and `dtype`,
        as `checkpointer.metadata(path).item_metadata` is, at the key of the state.
      shardings: `jax.sharding.NamedSharding` of every parameter, or a prefix tree of them. None
        takes those that the parameters have.
      convert: Whether a state in another layout (bits, block size, codec) is welcome. The target is
        then the layout that was saved, and `convert_state(state, params, tx)` makes the state of
        `tx` of what is restored. (It returns a state in the right layout as it is.)

    Returns:
      A tree like the state of `tx`, of `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      ValueError: What was saved has another layout, and `convert` is False; or leaves are missing,
        have another shape, or have no place. The message names the leaf.

    Examples:
      >>> params = {"w": jnp.ones((64, 256))}
      >>> saved = jax.eval_shape(lion8bit(1e-4).init, params)
      >>> restore_target(lion8bit(1e-4), params, saved).mu["w"].dtype
      dtype('uint8')
      >>> restore_target(lion32bit(1e-4), params, saved)
      Traceback (most recent call last):
      ...
      ValueError: State leaf mu['w'] is in 8 bits, but this optimizer keeps 32. Build it with \
`bits=8`, or convert the state: pass `convert=True` to `restore_target`, and what is restored to \
`convert_state(state, params, tx)`.
    """
    fresh = jax.eval_shape(tx.init, params)
    named = Saved(saved)

    def target(path, like):
        name = path_string(path)
        if not isinstance(like, OURS):
            x = named.take(name, like.shape, like.dtype)
            return _as_saved(x, like)
        source, layout = named.source(name, like)
        if not convert and layout != layout_in(like):
            refuse_layout(layout_in(like), layout, like.mu, _CONVERT)
        return _form(like, source, layout)

    forms = jax.tree_util.tree_map_with_path(target, fresh, is_leaf=is_ours)
    named.refuse_the_rest()
    return with_places(forms, params, shardings, always=True)


_CONVERT = (
    "convert the state: pass `convert=True` to `restore_target`, and what is restored to "
    "`convert_state(state, params, tx)`"
)


def is_ours(node) -> bool:
    """Whether it is a state of Lion or LAMB."""
    return isinstance(node, OURS)


def layout_in(state):
    """The layout of a state; None in 32 bits."""
    return None if state.layout is None else layout_of(state.layout)


def _form(like, source, layout):
    """A state in the form that was saved, in the kinds of memory that `like` asks for."""
    fields: dict[str, Any] = dict.fromkeys(like._fields)
    fields["count"] = _as_saved(source.count, like.count)
    for name, leaves in source.slots.items():
        rows, treedef = jax.tree_util.tree_flatten_with_path(getattr(like, name))
        slots, scales = [], []
        for path, x in rows:
            stored = leaves[path_string(path)]
            check_stored(f"{name}[{path_string(path)!r}]", stored, x.shape)
            slots.append(_as_saved(stored.x, x))
            # What stands for the scales of a leaf without codes is always on the device.
            scales.append(
                None
                if stored.absmax is None
                else _as_saved(stored.absmax, x if stored.layout else like.count)
            )
        fields[name] = treedef.unflatten(slots)
        if layout is not None:
            fields[f"{name}_absmax"] = treedef.unflatten(scales)
    if source.history is not None:
        fields["gnorm_history"] = jax.tree_util.tree_map_with_path(
            lambda path, x: _as_saved(source.history[path_string(path)], x), like.gnorm_history
        )
    if layout is not None:
        fields["layout"] = {layout.entry: like.count}
    return type(like)(**fields)


def _as_saved(x, like):
    """The shape and dtype of what was saved, in the memory of `like`."""
    device = jax.devices()[0] if memory_kind(like) == KIND else None
    sharding = device and jax.sharding.SingleDeviceSharding(device, memory_kind=KIND)
    return jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=sharding)
