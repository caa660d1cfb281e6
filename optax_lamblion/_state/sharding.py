"""Shardings for the state of an optimizer on a mesh."""

import math
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from optax_lamblion._mesh.splits import Split, axes_of, fits, split_for, warn_of_cuts
from optax_lamblion._paging.memory import KIND, abstract_state, memory_kind
from optax_lamblion._state.names import path_string
from optax_lamblion._state.types import STATES, ClipByPercentileState
from pallas_kernels.arithmetic.blocks import BLOCK_SIZES, absmax_shape


def state_sharding(
    tx: optax.GradientTransformation,
    params: Any,
    shardings: Any = None,
    *,
    over: str | tuple[str, ...] | None = None,
) -> Any:
    r"""Shardings for the state of an optimizer, from those of its parameters.

    Moments are sharded like their parameters, and scales like the blocks they belong to. Counts and
    norms are replicated, and paged state is in host memory. Pass the result to `jax.jit` as
    `out_shardings` of `tx.init`, and, on a mesh with Auto axes, of a step that donates its state,
    so that XLA updates every array in place. Or pass it to a checkpoint library to restore a state
    on this mesh, whatever mesh it was saved from.

    Args:
      tx: Any Optax transformation. Its per-parameter arrays are recognised by their shape and their
        position in the tree; all others are replicated.
      params: Parameters, or their `jax.ShapeDtypeStruct`.
      shardings: The `jax.sharding.NamedSharding` of every parameter: a tree like `params`, or a
        prefix of it. None uses the shardings of `params`.
      over: A mesh axis, or a tuple of them, over which to shard the state further, as in the first
        stage of ZeRO: parameters that are replicated along a data-parallel axis then have sharded
        state. Each device updates its shard, and XLA gathers the parameters, or updates, once per
        step. The first axis of an array whose shards consist of whole blocks is sharded.

    Returns:
      A tree of `NamedSharding` like `tx.init(params)`.

    Raises:
      TypeError: A parameter has no `NamedSharding`.
      ValueError: `shardings` has another structure than `params`, or `over` names an axis that the
        mesh does not have.

    Warns:
      UserWarning: Shards split blocks; the message names the leaves, and a block size that fits.
        Such leaves are gathered in every step.

    Examples:
      >>> from jax.sharding import NamedSharding, PartitionSpec
      >>> mesh = jax.make_mesh((1,), ("fsdp",))
      >>> shardings = {"w": NamedSharding(mesh, PartitionSpec("fsdp", None))}
      >>> params = {"w": jnp.zeros((1024, 512))}
      >>> tx = lion8bit(1e-4)
      >>> for_state = state_sharding(tx, params, shardings)
      >>> state = jax.jit(tx.init, out_shardings=for_state)(params)
      >>> tuple(state.mu["w"].sharding.spec), tuple(state.mu_absmax["w"].sharding.spec)
      (('fsdp',), ('fsdp',))

    References:
      Rajbhandari et al., `ZeRO: Memory Optimizations Toward Training Trillion Parameter Models
      <https://arxiv.org/abs/1910.02054>`_, 2020, section 5.1 (`over`).
    """
    over = () if over is None else (over,) if isinstance(over, str) else tuple(over)
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    return shardings_of(abstract_state(tx, shapes), params, shardings, over)


def shardings_of(state, params, shardings=None, over=()):
    """The same for a state whose arrays, or their shapes, are at hand."""
    known = _known(params, shardings, over)
    everywhere = NamedSharding(next(iter(known.values())).mesh, PartitionSpec())
    given = _Given(known, everywhere, over, {})

    def of_ours(node):
        def of_field(name):
            field = getattr(node, name)
            if name in ("count", "gnorm_history", "layout", "skipped") or field is None:
                return jax.tree.map(lambda _: everywhere, field)
            if name == "residual":
                rows, treedef = jax.tree.flatten(field)
                like = treedef.flatten_up_to(of_field("mu"))
                moments = treedef.flatten_up_to(node.mu)
                return treedef.unflatten(
                    sharding if x.shape == mu.shape else everywhere
                    for x, mu, sharding in zip(rows, moments, like, strict=True)
                )
            slot, is_scales = name.removesuffix("_absmax"), name.endswith("_absmax")
            scales = getattr(node, f"{slot}_absmax")
            rows, treedef = jax.tree_util.tree_flatten_with_path(getattr(node, slot))
            scales = [None] * len(rows) if scales is None else treedef.flatten_up_to(scales)
            return treedef.unflatten(
                _of_slot(given, path, x, a, is_scales)
                for (path, x), a in zip(rows, scales, strict=True)
            )

        if isinstance(node, ClipByPercentileState):
            return jax.tree.map(lambda _: everywhere, node)
        return type(node)(**{name: of_field(name) for name in node._fields})

    def of_node(path, node):
        if isinstance(node, _OURS):
            return of_ours(node)
        param = given.param(path)
        if param is None or param.shape != node.shape:
            return everywhere
        spec = _divided(param, over, None)
        return NamedSharding(param.mesh, spec, memory_kind=_kind(node))

    out = jax.tree_util.tree_map_with_path(of_node, state, is_leaf=lambda x: isinstance(x, _OURS))
    warn_of_cuts(list(given.cuts.values()))
    return out


_OURS = (*STATES, ClipByPercentileState)


class _Param(NamedTuple):
    """What is known of a parameter."""

    shape: tuple[int, ...]
    mesh: Any
    axes: tuple[tuple[str, ...], ...]


class _Given(NamedTuple):
    """What is known of all parameters, and what comes of it."""

    known: dict[Any, _Param]
    """By their paths."""
    everywhere: NamedSharding
    over: tuple[str, ...]
    cuts: dict[str, Any]
    """Filled with the leaves whose blocks are cut, as `warn_of_cuts` wants them."""

    def param(self, path):
        """The parameter whose path the end of this one is; the longest, if there are several."""
        ends = (path[i:] for i in range(len(path) + 1))
        return next((self.known[end] for end in ends if end in self.known), None)


def _known(params, shardings, over):
    """A `_Param` for every parameter, by its path."""
    rows = jax.tree_util.tree_leaves_with_path(params)
    if shardings is None:
        leaves = [getattr(p, "sharding", None) for _, p in rows]
    else:
        try:
            leaves = jax.tree.leaves(jax.tree.broadcast(shardings, params))
        except ValueError as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                "`shardings` must be a tree of `NamedSharding` with the structure of the "
                f"parameters or a prefix of it: {why}."
            ) from None
    known = {}
    for (path, p), sharding in zip(rows, leaves, strict=True):
        if not isinstance(sharding, NamedSharding):
            raise TypeError(
                f"Parameter {path_string(path)!r} has the sharding {sharding!r}; "
                "`state_sharding` needs a `jax.sharding.NamedSharding` for every parameter. Pass "
                "them as `shardings`."
            )
        if missing := [name for name in over if name not in sharding.mesh.shape]:
            names = ", ".join(map(repr, sharding.mesh.axis_names))
            raise ValueError(f"`over` names {missing[0]!r}, but the mesh has the axes {names}.")
        known[path] = _Param(tuple(p.shape), sharding.mesh, axes_of(sharding.spec, len(p.shape)))
    if not known:
        raise ValueError("There are no parameters whose sharding their state could follow.")
    return known


def _of_slot(given, path, x, absmax, is_scales):
    """The sharding of a slot, or of its scales; `absmax` are scales, if it has some."""
    param = given.param(path)
    if x.dtype != "uint8":
        absmax = None
    if param is None or param.shape != x.shape or (is_scales and absmax is None):
        return given.everywhere
    block = None if absmax is None else _block_size(x.shape, absmax.shape)
    axes = axes_of(_divided(param, given.over, block), x.ndim)
    split = split_for(x.shape, [axes], dict(param.mesh.shape), block)
    if split.axes != split.asked:
        name = path_string(path)
        given.cuts[name] = name, split, block
    if is_scales and absmax is not None:
        spec = split.scales_spec(absmax.shape)
        return NamedSharding(param.mesh, spec, memory_kind=_kind(absmax))
    # A slot stays divided where blocks are cut: it is gathered in a step, but rests in shards.
    return NamedSharding(param.mesh, split._replace(axes=axes).spec, memory_kind=_kind(x))


def _block_size(shape, scales_shape):
    """The block size of a leaf; None if it is one block, or could be."""
    if math.prod(scales_shape) == 1:
        return None
    return next((b for b in BLOCK_SIZES if absmax_shape(shape, b) == scales_shape), None)


def _divided(param, over, block):
    """The partition spec of a parameter's state, divided over more axes where there is room."""
    sizes = dict(param.mesh.shape)
    used = {name for names in param.axes for name in names}
    more = tuple(name for name in over if name not in used)
    for i in range(len(param.shape) if more else 0):
        axes = tuple(a + more if j == i else a for j, a in enumerate(param.axes))
        if fits(param.shape, axes, sizes, block):
            return Split(param.shape, axes, sizes, axes).spec
    return Split(param.shape, param.axes, sizes, param.axes).spec


def _kind(x):
    kind = memory_kind(x)
    return KIND if kind == KIND else None
