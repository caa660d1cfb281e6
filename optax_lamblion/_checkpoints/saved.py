"""A saved state, by the names of its arrays.

Checkpoint libraries give trees back in other types: a NamedTuple as a dict, a tuple as a list, what
is empty not at all. Names survive all of them.
"""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_leaves_with_path

from optax_lamblion._checkpoints.recode import SLOTS, Source, Stored
from optax_lamblion._state.checks import check_count
from optax_lamblion._state.layout import Layout, layout_of
from optax_lamblion._state.names import first_names, path_string


class Saved:
    """The arrays of a state by their path, of which each is taken once.

    Args:
      state: Arrays or what describes them (`shape`, `dtype`), in a tree.
      exact: Whether it must have the names that the optimizer's own state has, and no others.
      fresh: Whether leaves of a parameter may be missing, or have another shape, and begin anew.

    Raises:
      ValueError: Two arrays have the same name.
    """

    def __init__(self, state, *, exact=False, fresh=False):
        self._left = {}
        for path, x in tree_leaves_with_path(state):
            name = _unboxed(path_string(path))
            if name in self._left:
                raise ValueError(
                    f"The state has two leaves of the name {name!r}, which cannot be told apart. "
                    "Rename the parameter with a slash in its name."
                )
            self._left[name] = x if hasattr(x, "dtype") else jnp.asarray(x)
        self._exact = exact
        self._fresh = fresh
        self._slots = set()
        self._dispensable = set()
        self.begun: list[str] = []

    def take(self, name, shape, dtype=None) -> Any:
        """The array of that name.

        Raises:
          ValueError: There is none, or it has another shape or dtype.
        """
        x = self._pop(name)
        if tuple(x.shape) != tuple(shape) or (dtype is not None and x.dtype != dtype):
            raise ValueError(
                f"State leaf {name!r} has shape {tuple(x.shape)} and dtype {x.dtype}; this "
                f"optimizer needs {tuple(shape)} and {jnp.dtype(dtype or x.dtype)}."
            )
        return x

    def source(self, prefix, like) -> tuple[Source, Layout | None]:
        """What there is for one of our states, and in which layout.

        A state in another place will do if it is the only one, below that path or else at all: a
        chain has got another part, or the state is of Optax's `scale_by_lion` or `scale_by_adam`.

        Args:
          prefix: The path of our state.
          like: A state in the form that is needed; its slots and leaves count.
        """
        if not self._is_state(prefix):
            prefix = self._only_state(prefix)
        count = self._count(_join(prefix, "count"))
        layout = self._layout(prefix)
        if layout is None and not self._exact:
            # Optax counts once more where it has a schedule for the learning rate.
            chain = prefix.removesuffix(prefix.rpartition("/")[2])
            parts = re.compile(rf"{re.escape(chain)}\d+/count")
            self._dispensable |= {name for name in self._left if parts.fullmatch(name)}
        names = [name for name in SLOTS if getattr(like, name, None) is not None]
        rows = [(path_string(path), x) for path, x in tree_leaves_with_path(like.mu)]
        begun = self._begin(prefix, names, rows)
        slots: dict[str, dict[str, Stored]] = {
            name: {
                leaf: begun.get(leaf) or self._stored(prefix, name, leaf, layout)
                for leaf, _ in rows
            }
            for name in names
        }
        history = None
        if like.gnorm_history is not None and self._has(_join(prefix, "gnorm_history")):
            leaves = [path_string(path) for path, _ in tree_leaves_with_path(like.gnorm_history)]
            history = {
                x: self._pop(_join(prefix, "gnorm_history", x)) for x in leaves if x not in begun
            }
        skipped = None
        if like.skipped is not None and self._has(_join(prefix, "skipped")):
            skipped = self._count(_join(prefix, "skipped"))
        residual = self._residual(prefix, [leaf for leaf, _ in rows if leaf not in begun])
        return Source(count, slots, history, skipped, residual), layout

    def _residual(self, prefix, leaves):
        """What parameters lack by leaf, if that was saved."""
        names = {leaf: _join(prefix, "residual", leaf) for leaf in leaves}
        if not any(_unboxed(name) in self._left for name in names.values()):
            return None
        return {leaf: self._pop(name) for leaf, name in names.items()}

    def _begin(self, prefix, names, rows):
        """A fresh slot for every leaf that was not saved with that shape, if that will do."""
        if not self._fresh:
            return {}
        self._slots |= {_join(prefix, x) + "/" for slot in SLOTS for x in (slot, f"{slot}_absmax")}
        self._slots |= {_join(prefix, x) + "/" for x in ("gnorm_history", "residual")}
        begun = {}
        for leaf, x in rows:
            saved = [self._left.get(_unboxed(_join(prefix, name, leaf))) for name in names]
            if any(y is None or tuple(y.shape) != tuple(x.shape) for y in saved):
                begun[leaf] = Stored(np.zeros(x.shape, np.float32))
                for slot in list(SLOTS):
                    for field in (slot, f"{slot}_absmax", "gnorm_history", "residual"):
                        self._left.pop(_unboxed(_join(prefix, field, leaf)), None)
        if rows and len(begun) == len(rows):
            raise ValueError(
                f"The saved state has no moments of any of these parameters, which are "
                f"{first_names(list(begun))}: it is of another kind of optimizer, or for other "
                "parameters. To start all of them at zero, call `tx.init(params)`."
            )
        self.begun += begun
        return begun

    def left_behind(self):
        """Takes what was saved of parameters that are no more, and returns their names."""
        behind = {}
        for name in list(self._left):
            for start in self._slots:
                if name.startswith(start):
                    behind[name.removeprefix(start)] = self._left.pop(name)
        return list(behind)

    def refuse_injection(self, names):
        """Raises `ValueError` if only one of the two is of `optax.inject_hyperparams`.

        Args:
          names: The arrays of the optimizer's own state that are not of an optimizer of ours.
        """
        wants = any(map(_INJECTED.search, names))
        has = any(
            all(self._has(name[: at.start(1)] + field) for field in ("count", "inner_state"))
            for name in self._left
            if (at := _INJECTED.search(name))
        )
        if wants and not has:
            raise ValueError(
                "`tx` is from `optax.inject_hyperparams`, but the saved state is not. Convert it "
                "for the optimizer inside, and put the result into a fresh state: "
                "`tx.init(params)._replace(inner_state=convert_state(state, params, inner))`."
            )
        if has and not wants:
            raise ValueError(
                "The saved state is from `optax.inject_hyperparams`, but `tx` is not. Pass "
                "what is inside: `state.inner_state`, or `state['inner_state']` of a dict."
            )

    def refuse_the_rest(self):
        """Raises `ValueError` if an array was not taken."""
        left = [name for name in self._left if name not in self._dispensable]
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise ValueError(
                f"State leaf {left[0]!r}{more} has no place in the state of this optimizer. Build "
                "the optimizer with the arguments and for the parameters that the state was saved "
                "with, or remove the leaf from the state to continue without it."
            )

    def _count(self, name):
        x = self._pop(name)
        check_count(name, x)
        return x

    def _layout(self, prefix):
        start = _join(prefix, "layout") + "/"
        names = [name for name in self._left if name.startswith(start)]
        entries = {name.removeprefix(start): self._pop(name) for name in names}
        return layout_of(entries) if entries else None

    def _stored(self, prefix, name, leaf, layout):
        x = self._pop(_join(prefix, name, leaf), f" {_BEGIN_ANEW}")
        if layout is None:
            if x.dtype == jnp.uint8:
                raise ValueError(
                    f"State leaf {_join(prefix, name, leaf)!r} has codes, but there is no "
                    f"{_join(prefix, 'layout')!r} that describes them. It is incomplete."
                )
            return Stored(x)
        return Stored(x, self._pop(_join(prefix, f"{name}_absmax", leaf)), layout)

    def _only_state(self, prefix):
        """The path of the only state with momentum that there is."""
        found = {name[: at.start()] for name in self._left for at in _MOMENTUM.finditer(name)}
        found = {x for x in found if self._is_state(x)}
        found = {x for x in found if x.startswith(f"{prefix}/")} or found
        if len(found) != 1:
            raise ValueError(
                f"The saved state has no state of Lion, LAMB or AdamW {_at(prefix)}, with a "
                f"`count` and moments. It has {first_names(list(self._left)) or 'no arrays'}. Pass "
                "the state of the optimizer, with the transformations around it that `tx` has."
            )
        (only,) = found
        if self._exact:
            raise ValueError(
                f"The saved state of Lion, LAMB or AdamW is {_at(only)}, and this "
                f"optimizer has it {_at(prefix)}. Restore the checkpoint without a target, and "
                "convert that: `convert_state(restored, params, tx)`."
            )
        return only

    def _has(self, prefix):
        return any(name == prefix or name.startswith(prefix + "/") for name in self._left)

    def _is_state(self, path):
        return _join(path, "count") in self._left

    def _pop(self, name, remedy=""):
        name = _unboxed(name)
        if name not in self._left:
            raise ValueError(
                f"State leaf {name!r} is missing from the saved state, which has "
                f"{first_names(list(self._left)) or 'no arrays'}. It was saved by another "
                f"optimizer, for other parameters, or incompletely.{remedy}"
            )
        return self._left.pop(name)


_BEGIN_ANEW = (
    "A new head or a larger vocabulary starts at zero with `convert_state(state, params, tx, "
    'missing="fresh")`.'
)
_INJECTED = re.compile(r"(?:^|/)(hyperparams/)[^/]+$")
_MOMENTUM = re.compile(r"(?:^|/)mu(?=/|$)")


def _at(path):
    return f"at {path!r}" if path else "at its top"


def _unboxed(name):
    """A name without the box of Flax around its array, which may have become a dict."""
    return name.removesuffix("/value")


def _join(*names):
    return "/".join(name for name in names if name)
