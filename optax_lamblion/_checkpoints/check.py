"""Checks a state, leaf by leaf."""

import dataclasses
import html
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding

from optax_lamblion._checkpoints.recode import (
    SLOTS,
    is_ours,
    layout_in,
    refuse_broken,
    stored_leaves,
)
from optax_lamblion._paging.memory import abstract_state, memory_kind
from optax_lamblion._state import checks
from optax_lamblion._state.layout import refuse_layout
from optax_lamblion._state.names import path_string
from optax_lamblion._state.sharding import shardings_of


class StateFault(NamedTuple):
    """A problem with one leaf of a state, and what to do about it."""

    path: str
    what: str


@dataclasses.dataclass(frozen=True)
class StateCheck:
    """The result of `check_state`; prints as a table, also in notebooks.

    Attributes:
      faults: One `StateFault` per problem, in tree order.
      leaves: The number of leaves that the optimizer's state has.
    """

    faults: tuple[StateFault, ...]
    leaves: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def __str__(self):
        """A line for every fault."""
        if self.ok:
            return f"{self.leaves} leaves, and nothing wrong with any."
        width = max(len(fault.path) for fault in self.faults)
        return "\n".join(f"{path:{width}}  {what}" for path, what in self.faults)

    def _repr_html_(self):
        """The same as a plain table of HTML, which notebooks show."""
        if self.ok:
            return f"<p>{html.escape(str(self))}</p>"
        cells = [(html.escape(path), html.escape(what)) for path, what in self.faults]
        rows = "\n".join(f"<tr><td>{path}</td><td>{what}</td></tr>" for path, what in cells)
        return f"<table>\n{rows}\n</table>"


def check_state(
    tx: optax.GradientTransformation, params: optax.Params, state: optax.OptState
) -> StateCheck:
    """Checks every array of a state and reports all problems at once.

    Use it for a state from elsewhere, or to diagnose a run that has diverged. It finds what a step
    refuses, and what a compiled step can't see. Nothing is changed.

    Args:
      tx: The transformation that the state belongs to.
      params: Its parameters. If they are on a mesh, the state should be placed according to
        `state_sharding`.
      state: The state.

    Returns:
      A `StateCheck`, which prints as a table: missing and extra leaves; wrong shapes, dtypes and
      layouts; moments, scales and norms that no step produces (NaN, infinite, negative); wrong
      counts; arrays in another kind of memory or with another sharding.

    Raises:
      TypeError: The state is traced, so its values are not known.

    Examples:
      >>> params = {"w": jnp.ones((64, 256)), "b": jnp.ones(256)}
      >>> tx = lion8bit(1e-4)
      >>> state = tx.init(params)
      >>> print(check_state(tx, params, state))
      6 leaves, and nothing wrong with any.
      >>> cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.mu)
      >>> [fault.path for fault in check_state(tx, params, state._replace(mu=cast)).faults]
      ['mu/b', 'mu/w']
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(state)):
        raise TypeError(
            "`check_state` looks at numbers, and this state is traced. Call it outside of "
            "`jax.jit`."
        )
    fresh = abstract_state(tx, params)
    look = _Look()
    has = {path_string(path): x for path, x in _flat(state)}
    for path, like in _flat(fresh):
        name = path_string(path)
        if name not in has:
            look.fault(name, "It is missing.")
        elif is_ours(like):
            look.at_ours(name, has.pop(name), like)
        else:
            look.at_other(name, has.pop(name), like)
    for name in has:
        look.fault(name, "It has no place in the state of this optimizer.")
    if look.faults:
        return StateCheck(tuple(look.faults), len(jax.tree.leaves(fresh)))
    look.at_places(state, _placed(fresh, params))
    return StateCheck(tuple(look.faults), len(jax.tree.leaves(fresh)))


def _flat(state):
    return jax.tree_util.tree_leaves_with_path(state, is_leaf=is_ours)


def _placed(fresh, params):
    """What a fresh state looks like, with its shardings where parameters are on a mesh."""
    own = [getattr(p, "sharding", None) for p in jax.tree.leaves(params)]
    if not (own and all(isinstance(x, NamedSharding) and x.mesh.size > 1 for x in own)):
        return fresh
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        fresh,
        shardings_of(fresh, params),
    )


class _Look:
    """Collects what is wrong."""

    def __init__(self):
        self.faults: list[StateFault] = []

    def fault(self, path, what):
        """Takes down one."""
        self.faults.append(StateFault(path, what))

    def ask(self, path, check, *args, **kwargs):
        """Takes down what a check raises. Returns whether it raised nothing."""
        try:
            check(*args, **kwargs)
        except (TypeError, ValueError) as error:
            self.fault(path, str(error))
            return False
        return True

    def at_other(self, name, x, like):
        """Looks at an array of another transformation."""
        shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
        if (shape, dtype) != (like.shape, like.dtype):
            self.fault(
                name,
                f"It has shape {shape} and dtype {dtype}; this optimizer needs {like.shape} and "
                f"{like.dtype}.",
            )

    def at_ours(self, prefix, state, like):
        """Looks at a state of this package."""
        if type(state) is not type(like):
            has, needs = type(state).__name__, type(like).__name__
            self.fault(prefix, f"It is a {has}; this optimizer keeps a {needs}.")
            return
        join = _join(prefix)
        self.ask(join("count"), checks.check_count, "count", state.count)
        for field in ("skipped", "gnorm_history", "nu_max", "residual"):
            if (getattr(like, field, None) is None) != (getattr(state, field, None) is None):
                kept = "is missing" if getattr(like, field, None) is not None else "is not kept"
                self.fault(join(field), f"The state's `{field}` {kept} by this optimizer.")
                return
        if state.skipped is not None:
            self.ask(join("skipped"), checks.check_count, "skipped", state.skipped)
        same = self.ask(
            join("layout"), lambda: refuse_layout(layout_in(like), layout_in(state), state.mu)
        )
        if same and self.ask(prefix or "state", _check_structure, state, like):
            self._at_slots(join, state, like)
            self._at_history(join, state, like)
            rows, tree = jax.tree_util.tree_flatten_with_path(like.residual)
            for (path, wanted), x in zip(rows, tree.flatten_up_to(state.residual), strict=True):
                self.at_other(join("residual", path_string(path)), x, wanted)

    def _at_slots(self, join, state, like):
        for field in [name for name in SLOTS if getattr(like, name, None) is not None]:
            stored = stored_leaves(state, field)
            for path, wanted in jax.tree_util.tree_leaves_with_path(getattr(like, field)):
                self._at_slot(join, field, path_string(path), stored, wanted.shape)

    def _at_slot(self, join, field, name, stored, shape):
        x, absmax, layout = stored[name]
        leaf, where = f"{field}[{name!r}]", join(field, name)
        block_size = None if layout is None else layout.block_size
        check = checks.check_slot
        if self.ask(where, check, leaf, x, absmax, shape, block_size, of="its parameter"):
            self.ask(where, refuse_broken, leaf, stored[name], field)

    def _at_history(self, join, state, like):
        if like.gnorm_history is None:
            return
        rows, tree = jax.tree_util.tree_flatten_with_path(like.gnorm_history)
        for (path, wanted), x in zip(rows, tree.flatten_up_to(state.gnorm_history), strict=True):
            leaf = path_string(path)
            name = join("gnorm_history", leaf)
            if self.ask(name, checks.check_history, leaf, x, wanted.shape) and not bool(
                jnp.all((jnp.asarray(x) >= 0) & (jnp.asarray(x) < jnp.inf))
            ):
                self.fault(name, "It has norms that are NaN, infinite or negative.")

    def at_places(self, state, placed):
        """Looks where arrays are."""
        rows, tree = jax.tree_util.tree_flatten_with_path(placed)
        for (path, like), x in zip(rows, tree.flatten_up_to(state), strict=True):
            if not isinstance(x, jax.Array):
                continue
            name, kind, wanted = path_string(path), memory_kind(x), memory_kind(like)
            if kind != wanted:
                self.fault(
                    name, f"It is in memory of kind {kind}; this optimizer keeps it in {wanted}."
                )
            elif like.sharding is not None and not x.sharding.is_equivalent_to(
                like.sharding, x.ndim
            ):
                self.fault(
                    name,
                    f"It is divided as {x.sharding}, and `state_sharding` says {like.sharding}.",
                )


def _check_structure(state, like):
    ours, needed = jax.tree.structure(state), jax.tree.structure(like)
    if ours != needed:
        raise ValueError(f"Its structure is {ours}; this optimizer needs {needed}.")


def _join(prefix):
    def join(*names) -> Any:
        return "/".join(name for name in (prefix, *names) if name)

    return join
