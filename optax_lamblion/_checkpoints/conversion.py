"""Conversion between states: other bit widths, block sizes, codecs and memories."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_lamblion._checkpoints.places import is_tied, put, struct, told_in_types, with_places
from optax_lamblion._checkpoints.recode import check_stored, fill, is_ours, layout_in
from optax_lamblion._checkpoints.saved import Saved
from optax_lamblion._paging.memory import KIND, abstract_state, memory_kind
from optax_lamblion._state.checks import check_history
from optax_lamblion._state.layout import refuse_layout
from optax_lamblion._state.names import first_names, path_string


def convert_state(
    state: Any, params: Any, tx: optax.GradientTransformation, *, missing: str = "refuse"
) -> optax.OptState:
    """Converts a state to the layout, memory and mesh of another optimizer.

    Use it to resume with another bit width, block size or codec, paged instead of resident, or with
    other leaves in 32 bits; and for a state that a checkpoint library restored as dicts and lists.
    Moments are decoded and stored again, leaf by leaf. Arrays that already have the right layout
    and place are passed on without a copy.

    Args:
      state: The state of a transformation that contains Lion, LAMB or AdamW: as the optimizer
        returned it, or as Orbax or `flax.serialization` restored it. States of `optax.lion`,
        `optax.lamb` and `optax.adamw` work as well (`optax.scale_by_lion`, `optax.scale_by_adam`).
      params: Parameters, or their `jax.ShapeDtypeStruct`. If they are on a mesh, the state is
        placed according to `state_sharding`; if they are on one device, it is placed there.
      tx: The transformation to resume with: `lion8bit(...)`, or a chain that contains it.
      missing: What to do about parameters that were not saved, or with another shape: a new head,
        a larger vocabulary, unfrozen layers. `"refuse"` raises. `"fresh"` starts their moments at
        zero, and drops the moments of parameters that no longer exist.

    Returns:
      A state of `tx`. If `tx` uses them and `state` lacks them, the norms of `percentile_clipping`
      start empty, and the count of `StateOptions(count_skipped=True)` and the residuals of
      `StateOptions(param_rounding="compensated")` start at zero. If `tx` doesn't use residuals,
      they are dropped; the parameters are correctly rounded without them.

    Raises:
      ValueError: The state doesn't belong to this kind of optimizer and these parameters (missing
        or extra leaves, other shapes or dtypes), or contains values that no step produces: NaN or
        infinite moments or scales, negative scales or second moments (not checked while tracing).
        The message names the leaf, and `state` is unchanged.

    Warns:
      UserWarning: With `missing="fresh"`, which parameters start at zero and which are dropped.

    Examples:
      >>> params = {"w": jnp.ones((64, 256))}
      >>> state = lion32bit(1e-4).init(params)
      >>> tx = lion8bit(1e-4)
      >>> state = convert_state(state, params, tx)
      >>> state.mu["w"].dtype, list(state.layout)
      (dtype('uint8'), ['power_256_v2'])
      >>> updates, state = tx.update(params, state, params)
    """
    if missing not in ("refuse", "fresh"):
        raise ValueError(f'`missing` must be "refuse" or "fresh", got {missing!r}.')
    fresh = abstract_state(tx, params)
    fresh = with_places(fresh, params, always=is_tied(state, params))
    saved = Saved(state, fresh=missing == "fresh")
    saved.refuse_injection(_around(fresh))

    def convert(path, like):
        name = path_string(path)
        if not is_ours(like):
            return put(saved.take(name, like.shape, like.dtype), like)
        source, _ = saved.source(name, like)
        return fill(like, source, layout_in(like))

    out = jax.tree_util.tree_map_with_path(convert, fresh, is_leaf=is_ours)
    behind = saved.left_behind()
    saved.refuse_the_rest()
    if saved.begun or behind:
        words = [f"moments of {first_names(saved.begun)} start at zero"] if saved.begun else []
        words += [f"the saved moments of {first_names(behind)} are dropped"] if behind else []
        warnings.warn(f"In `convert_state`, {', and '.join(words)}.", stacklevel=2)
    return out


def _around(state):
    """The names of all arrays of a state but those of optimizers of this package."""
    rows = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_ours)
    return [path_string(path) for path, x in rows if not is_ours(x)]


def restore_target(
    tx: optax.GradientTransformation,
    params: Any,
    saved: Any,
    *,
    shardings: Any = None,
    convert: bool = False,
) -> Any:
    """The target for restoring a saved state: the shape, dtype and sharding of every array.

    Pass it to `orbax.checkpoint`, which then restores every array straight to its place: shards to
    their devices, whatever mesh they were saved from, and paged state to host memory. A checkpoint
    that the optimizer can't use is refused before anything is read. Pass the restored state to
    `convert_state`; a state that already has the right layout is returned as it is.

    Args:
      tx: The transformation to resume with.
      params: Parameters, or their `jax.ShapeDtypeStruct`.
      saved: The checkpoint's metadata of the state: a tree of objects with `shape` and `dtype`, as
        in `checkpointer.metadata(path).item_metadata`.
      shardings: The `jax.sharding.NamedSharding` of every parameter, or a prefix tree. None uses
        the shardings of `params`.
      convert: Whether to accept a state in another layout (bit width, block size, codec). The
        target then has the saved layout, and `convert_state(state, params, tx)` converts the
        restored state. This also accepts missing gradient norms, skip counts and residuals, and
        residuals that `tx` doesn't use.

    Returns:
      A tree like the state of `tx`, in which every leaf is a `jax.ShapeDtypeStruct` with its
      sharding.

    Raises:
      ValueError: The saved state has another layout and `convert` is False, or has missing or extra
        leaves, or other shapes or dtypes. The message names the leaf.

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
    if not jax.tree.leaves(saved):
        raise ValueError(
            "`saved` has no arrays. If it is the `item_metadata` of a checkpoint, files of that "
            "are missing or damaged, or its folder is another one."
        )
    fresh = abstract_state(tx, params)
    named = Saved(saved, exact=True)
    named.refuse_injection(_around(fresh))

    def target(path, like):
        name = path_string(path)
        if not is_ours(like):
            x = named.take(name, like.shape, like.dtype)
            return _as_saved(x, like)
        source, layout = named.source(name, like)
        if not convert:
            _refuse_another(like, source, layout)
        return _form(like, source, layout)

    forms = jax.tree_util.tree_map_with_path(target, fresh, is_leaf=is_ours)
    named.refuse_the_rest()
    placed = with_places(forms, params, shardings, always=True)
    return jax.tree.map(lambda x: struct(x, told_in_types(x.sharding)), placed)


def _refuse_another(like, source, layout):
    """Raises `ValueError` unless what was saved can be a state in the form of `like` as it is."""
    # The leaf that is named is one in 8 bits, in whichever of the two has some.
    mu = {leaf: stored.x for leaf, stored in source.slots["mu"].items()} if layout else like.mu
    refuse_layout(layout_in(like), layout, mu, _CONVERT)
    if like.gnorm_history is not None and source.history is None:
        raise ValueError(
            "The saved state has no `gnorm_history`: its optimizer had no `percentile_clipping`. "
            f"Build this one without, or, so that norms start empty, {_CONVERT}."
        )
    if like.skipped is not None and source.skipped is None:
        raise ValueError(
            "The saved state has no `skipped`: its optimizer had no "
            "`StateOptions(count_skipped=True)`. Build this one without, or, so that it counts "
            f"from zero, {_CONVERT}."
        )
    if (like.residual is None) != (source.residual is None):
        rounding = '`StateOptions(param_rounding="compensated")`'
        raise ValueError(
            f"The saved state has no `residual`: its optimizer had no {rounding}. Build this one "
            f"without, or, so that residuals start at zero, {_CONVERT}."
            if source.residual is None
            else f"The saved state has a `residual`. Build the optimizer with {rounding}, or, to "
            f"drop what parameters have beyond their 16 bits, {_CONVERT}."
        )


_CONVERT = (
    "convert the state: pass `convert=True` to `restore_target`, and what is restored to "
    "`convert_state(state, params, tx)`"
)


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
            if layout is not None:
                # What stands for the scales of a leaf without codes is always on the device.
                is_coded = stored.x.dtype == jnp.uint8
                scales.append(_as_saved(stored.absmax, x if is_coded else like.count))
        fields[name] = treedef.unflatten(slots)
        if layout is not None:
            fields[f"{name}_absmax"] = treedef.unflatten(scales)
    if source.history is not None:
        rows = jax.tree_util.tree_leaves_with_path(like.gnorm_history)
        for path, x in rows:
            check_history(path_string(path), source.history[path_string(path)], x.shape)
        fields["gnorm_history"] = like.gnorm_history
    if source.skipped is not None:
        fields["skipped"] = _as_saved(source.skipped, like.skipped)
    if source.residual is not None:
        rows, treedef = jax.tree_util.tree_flatten_with_path(like.mu)
        saved = [source.residual[path_string(path)] for path, _ in rows]
        # What stands for the residual of a parameter that has none is always on the device.
        fields["residual"] = treedef.unflatten(
            _as_saved(x, mu if x.shape == mu.shape else like.count)
            for x, (_, mu) in zip(saved, rows, strict=True)
        )
    if layout is not None:
        fields["layout"] = {layout.entry: like.count}
    return type(like)(**fields)


def _as_saved(x, like):
    """The shape and dtype of what was saved, in the memory of `like`."""
    device = jax.devices()[0] if memory_kind(like) == KIND else None
    sharding = device and jax.sharding.SingleDeviceSharding(device, memory_kind=KIND)
    return jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=sharding)
