"""The size of a state: bytes by leaf, by dtype, by memory kind and on each device."""

import collections
import dataclasses
import html
import math
from typing import Any, NamedTuple

import jax
import optax

from optax_lamblion._paging.memory import memory_kind
from optax_lamblion._state.names import path_string

MOST_ROWS = 40
"""A state of more arrays is shown by groups: what a screen holds."""


class StateLeaf(NamedTuple):
    """One array of a state."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    memory_kind: str
    nbytes: int
    shard_nbytes: int
    """Bytes of the shard on one device; `nbytes` if the array is not sharded."""


@dataclasses.dataclass(frozen=True)
class StateReport:
    """The bytes of an optimizer's state; prints as a table, also in notebooks.

    A state with more than 40 arrays prints groups of arrays that share the beginning of their path,
    their dtype and their memory kind.

    Attributes:
      leaves: One `StateLeaf` per array, in tree order.
      parameters: The number of parameters, or None if `params` wasn't passed.
      parameter_nbytes: Their bytes, or None.
    """

    leaves: tuple[StateLeaf, ...]
    parameters: int | None = None
    parameter_nbytes: int | None = None

    @property
    def nbytes(self) -> int:
        """Total bytes."""
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def shard_nbytes(self) -> int:
        """Bytes on one device, in any kind of memory."""
        return sum(leaf.shard_nbytes for leaf in self.leaves)

    @property
    def bytes_per_parameter(self) -> float | None:
        """Total bytes per parameter, or None if `params` wasn't passed."""
        return self.nbytes / self.parameters if self.parameters else None

    @property
    def by_dtype(self) -> dict[str, int]:
        """Bytes per dtype."""
        return self._sum("dtype")

    @property
    def by_memory_kind(self) -> dict[str, int]:
        """Bytes per kind of memory."""
        return self._sum("memory_kind")

    def _sum(self, field):
        totals = collections.Counter()
        for leaf in self.leaves:
            totals[getattr(leaf, field)] += leaf.nbytes
        return dict(totals)

    def __str__(self):
        """A table of all leaves, or of groups of them, and the totals."""
        rows, words = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

        def aligned(row):
            return "  ".join(
                cell.ljust(width) if i < words else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )

        return "\n".join(aligned(row).rstrip() for row in rows)

    def _repr_html_(self):
        """The same as a plain table of HTML, which notebooks show."""
        rows, words = self._rows()

        def line(row, tag):
            cells = (
                f'<{tag} style="text-align: {"left" if i < words else "right"}">'
                f"{html.escape(cell)}</{tag}>"
                for i, cell in enumerate(row)
            )
            return f"<tr>{''.join(cells)}</tr>"

        head, *body = rows
        return "\n".join(
            ["<table>", line(head, "th"), *(line(row, "td") for row in body), "</table>"]
        )

    def _rows(self):
        """`(rows of text, the first of which is a header, how many columns hold words)`."""

        def row(path, shape, dtype, kind, leaves):
            sizes = sum(x.nbytes for x in leaves), sum(x.shard_nbytes for x in leaves)
            return (path, shape, dtype, kind, *(f"{n:,}" for n in sizes))

        rows: list[tuple[str, ...]]
        rows = [("leaf", "shape", "dtype", "memory", "bytes", "per device")]
        for (path, dtype, kind), leaves in _groups(self.leaves).items():
            if len(leaves) == 1:
                rows.append(row(leaves[0].path, _shape(leaves[0]), dtype, kind, leaves))
            else:
                rows.append(row(path, f"{len(leaves):,} arrays", dtype, kind, leaves))
        for dtype in sorted(self.by_dtype):
            rows.append(row("total", "", dtype, "", [x for x in self.leaves if x.dtype == dtype]))
        for kind in sorted(self.by_memory_kind):
            same = [x for x in self.leaves if x.memory_kind == kind]
            rows.append(row("total", "", "", kind, same))
        rows.append(row("total", "", "", "", self.leaves))
        if self.parameters is not None:
            elements, nbytes = f"{self.parameters:,}", f"{self.parameter_nbytes:,}"
            rows.append(("parameters", elements, "", "", nbytes, ""))
        if self.bytes_per_parameter is not None:
            each = f"{self.bytes_per_parameter:.3f}"
            rows.append(("state per parameter", "", "", "", each, ""))
        is_divided = self.shard_nbytes != self.nbytes
        return (rows if is_divided else [row[:-1] for row in rows]), 4


def _groups(leaves):
    """Leaves by `(path, dtype, memory kind)`: with as much of the paths as makes few of them."""
    depth = max((leaf.path.count("/") + 1 for leaf in leaves), default=0)
    while True:
        groups = collections.defaultdict(list)
        for leaf in leaves:
            parts = leaf.path.split("/")
            path = leaf.path if len(parts) <= depth else "/".join([*parts[:depth], "..."])
            groups[path, leaf.dtype, leaf.memory_kind].append(leaf)
        if len(groups) <= MOST_ROWS or depth == 0:
            return groups
        depth -= 1


def _shape(leaf):
    return "x".join(map(str, leaf.shape)) or "scalar"


def state_report(state: optax.OptState, params: Any = None) -> StateReport:
    """Counts the bytes of an optimizer's state.

    Args:
      state: The state of any Optax transformation: arrays, or shapes from
        `jax.eval_shape(tx.init, params)`, which take no memory.
      params: The parameters, or their shapes. With them, the report includes their number and the
        bytes of state per parameter.

    Returns:
      A `StateReport`: `nbytes`, `by_dtype`, `by_memory_kind` and `leaves`. It prints as a table.
      Bytes count global arrays; for sharded arrays, `shard_nbytes` counts the bytes on one device.

    Raises:
      TypeError: `state` or `params` contains something that is not an array.

    Examples:
      >>> params = {"w": jnp.zeros((64, 256)), "b": jnp.zeros(256)}
      >>> print(state_report(lion8bit().init(params)))
      leaf                 shape   dtype    memory   bytes
      count                scalar  int32    device       4
      mu/b                 256     float32  device   1,024
      mu/w                 64x256  uint8    device  16,384
      mu_absmax/b          1       float32  device       4
      mu_absmax/w          64x1    float32  device     256
      layout/power_256_v2  scalar  int32    device       4
      total                        float32           1,284
      total                        int32                 8
      total                        uint8            16,384
      total                                 device  17,676
      total                                         17,676

      For a model that is too large for this machine:

      >>> shapes = {"w": jax.ShapeDtypeStruct((8192, 131072), jnp.bfloat16)}
      >>> report = state_report(jax.eval_shape(lamb8bit().init, shapes), shapes)
      >>> print(f"{report.bytes_per_parameter:.3f}, {report.nbytes / report.parameter_nbytes:.3f}")
      2.031, 1.016
    """
    leaves = []
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        nbytes = _nbytes("state", path, x)
        sharding = getattr(x, "sharding", None)
        shard = x.shape if sharding is None else sharding.shard_shape(x.shape)
        leaves.append(
            StateLeaf(
                path_string(path),
                tuple(x.shape),
                str(x.dtype),
                memory_kind(x),
                nbytes,
                nbytes if shard == x.shape else math.prod(shard) * x.dtype.itemsize,
            )
        )
    if params is None:
        return StateReport(tuple(leaves))
    sizes = [
        (math.prod(x.shape), nbytes)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        for nbytes in [_nbytes("params", path, x)]
    ]
    return StateReport(tuple(leaves), sum(n for n, _ in sizes), sum(n for _, n in sizes))


def _nbytes(argument, path, x):
    """The bytes of an array; `argument` and `path` say where it is."""
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise TypeError(
            f"`{argument}` must be a tree of arrays, got {type(x).__name__} at "
            f"{path_string(path)!r}. Pass what `tx.init(params)` returns, and its `params`."
        )
    # Keys of random numbers have a dtype that NumPy does not know, and a size.
    return math.prod(x.shape) * x.dtype.itemsize
