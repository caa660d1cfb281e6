"""From a rule to an Optax transformation.

Everything that varies from step to step becomes a scalar here, once per step or per leaf; the steps
of leaves (`_steps`) are called with nothing else.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_lamblion._optimizers import checks, clipping
from optax_lamblion._optimizers.fused import REQUEST, Applied
from optax_lamblion._paging.pages import extent_of
from optax_lamblion._paging.placement import check_host_memory, refuse_multi_steps, which_are_paged
from optax_lamblion._state import checks as state_checks
from optax_lamblion._state import fresh
from optax_lamblion._state.layout import Layout
from optax_lamblion._state.names import bools_like, path_string
from optax_lamblion._state.options import DEFAULT_OPTIONS, StateOptions
from optax_lamblion._steps.steps import step_leaves
from pallas_kernels.arithmetic.codecs import Codec, get_codec
from pallas_kernels.arithmetic.dither import Dither, even_digits
from pallas_kernels.arithmetic.rules import Rule, Scalars
from pallas_kernels.arithmetic.step import Spec
from pallas_kernels.leaf import Leaf, StoredSlot


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """What the public factories pass on; numbers may be schedules or traced values."""

    family: str
    """What the optimizer is called, without its bits."""
    rule: Rule
    state_type: Any
    numbers: Mapping[str, Any]
    """Those of the rule itself, by the names of the factory's arguments."""
    learning_rate: Any = None
    """None for a building block, which returns the direction itself."""
    weight_decay: Any = 0.0
    mask: Any = None
    adam_w_mode: bool = True
    max_unorm: Any = None
    trust_clip: tuple[Any, Any] | None = None
    bits: int | None = None
    min_8bit_size: int | None = None
    block_wise: bool = True
    percentile_clipping: Any = None
    paged: bool = False
    options: StateOptions | None = None

    @property
    def chosen(self) -> StateOptions:
        """The options, or the default ones."""
        return DEFAULT_OPTIONS if self.options is None else self.options

    @property
    def block_size(self) -> int | None:
        """Elements that share a scale; None for all of a leaf."""
        return self.chosen.block_size if self.block_wise else None

    @property
    def layout(self) -> Layout | None:
        """How leaves in 8 bits are stored; None if there are none."""
        return Layout(self.chosen.codec, self.block_size) if self.bits == 8 else None

    @property
    def least_8bit_size(self) -> int:
        """Leaves with fewer elements are stored in 32 bits."""
        given = self.min_8bit_size
        return max(self.chosen.min_8bit_size if given is None else given, 1)

    @property
    def resident_name(self) -> str:
        """What the optimizer is called whose state is the same, and stays on the device."""
        return f"{self.family}8bit" if self.bits == 8 else self.family

    @property
    def clips(self) -> bool:
        """Whether gradient norms are remembered."""
        return not checks.is_off(self.percentile_clipping)

    @property
    def decays(self) -> bool:
        """Whether there may be weight decay."""
        return not (checks.is_number(self.weight_decay) and self.weight_decay == 0)

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """The codec of every slot."""
        return tuple(get_codec(self.chosen.codec, slot.signed) for slot in self.rule.slots)


def make(settings: Settings) -> optax.GradientTransformationExtraArgs:
    """The Optax transformation of these settings."""
    checks.check_settings(settings)
    return optax.GradientTransformationExtraArgs(
        functools.partial(_init, settings), functools.partial(_update, settings)
    )


def _init(c, params):
    if c.paged:
        refuse_multi_steps()
        check_host_memory(c.resident_name)
    return fresh.init_state(c, params)


def _update(c, updates, state, params=None, **extra_args):
    if params is None and (c.decays or c.rule.ratio):
        why = "the trust ratio" if c.rule.ratio else "weight decay"
        raise ValueError(
            f"`update` needs `params` because {why} uses them. "
            "Call `tx.update(grads, state, params)`."
        )
    state_checks.check_state(c, state)
    if c.paged:
        refuse_multi_steps()
    # What a `scale_by_` form returns is no update yet, so it cannot be added to parameters here.
    apply = extra_args.get(REQUEST, False) and c.learning_rate is not None
    count: Any = optax.safe_increment(state.count)
    rows = _Rows.of(c, updates, state, params)
    histories, scales = _clip(c, rows, count)
    leaves = _leaves(c, rows, scales, state.count, count, "params" if apply else "updates")
    paged = _paged(c, rows.rows) & leaves.keys()
    stepped = step_leaves(
        {i: leaf for i, leaf in leaves.items() if i not in paged},
        {i: leaf for i, leaf in leaves.items() if i in paged},
        [row.name for row in rows.rows],
        c.chosen,
    )
    outs = [None if row.g is None else stepped[i].out for i, row in enumerate(rows.rows)]
    if apply:
        outs = [None if out is None else Applied(out) for out in outs]
    return rows.tree.unflatten(outs), _next_state(c, state, count, rows, histories, stepped)


# ------------------------------------------------------------------------------ what is given


class _Row(NamedTuple):
    """What is given of a parameter."""

    name: str
    g: Any
    """None for what has no gradient."""
    p: Any
    decays: Any
    """Whether it decays: a Python bool, or a traced one."""
    stacked: bool
    slots: tuple[StoredSlot, ...]
    """Without values for a None in place of a parameter."""
    absmaxes: tuple[Any, ...]
    """As the state has them: of a slot without codes, what stands for its scales."""
    history: Any


class _Rows(NamedTuple):
    """What is given of all of them."""

    tree: Any
    """The structure of the gradients."""
    rows: list[_Row]

    @classmethod
    def of(cls, c, updates, state, params):
        paths_and_grads, tree = jax.tree_util.tree_flatten_with_path(
            updates, is_leaf=lambda x: x is None
        )
        names = [path_string(path) for path, _ in paths_and_grads]
        given = _leaves_like(tree, params, "`params`", "Call `tx.update(grads, state, params)`")
        mask = _decay_mask(c.mask, params) if c.decays else False

        def slots(suffix):
            fields = [slot.name + suffix for slot in c.rule.slots]
            return zip(*(_of_state(tree, state, field) for field in fields), strict=True)

        columns = zip(
            names,
            [g for _, g in paths_and_grads],
            given,
            tree.flatten_up_to(mask) if c.decays else [False] * len(names),
            tree.flatten_up_to(c.chosen.are_stacked(updates)),
            slots(""),
            slots("_absmax"),
            _of_state(tree, state, "gnorm_history"),
            strict=True,
        )
        return cls(tree, [_row(c, *column) for column in columns])


def _row(c, name, g, p, decays, stacked, values, absmaxes, history):
    if g is not None:
        state_checks.check_gradient(name, g)
        state_checks.check_leaf(c, name, g, values, absmaxes)
        state_checks.check_param(name, g, p)
    slots = tuple(
        StoredSlot(x, absmax if x is not None and x.dtype == jnp.uint8 else None)
        for x, absmax in zip(values, absmaxes, strict=True)
    )
    return _Row(name, g, p, decays, stacked, slots, absmaxes, history)


def _of_state(tree, state, field):
    made = "Make a new state with `tx.init(params)`"
    return _leaves_like(tree, getattr(state, field), f"The state's `{field}`", made)


def _leaves_like(structure, tree, what, remedy):
    """The leaves of a tree for every gradient; Nones without a tree."""
    if tree is None:
        return [None] * structure.num_leaves
    try:
        return structure.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(
            f"{what} must have the structure of the gradients: {error} {remedy}."
        ) from None


def _decay_mask(mask, params):
    """A tree of bools (Python's where they are) like `params`."""
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    tree = mask(params) if callable(mask) else mask
    return bools_like("mask", tree, params)


# ------------------------------------------------------------------------------- from row to leaf


def _clip(c, rows, count):
    """`(histories, scales)` for every row: of gradient norms, and what gradients are scaled by."""
    histories: list[Any] = [row.history for row in rows.rows]
    scales: list[Any] = [None] * len(histories)
    if not c.clips:
        return histories, scales
    there = [i for i, row in enumerate(rows.rows) if row.g is not None]
    squared = clipping.squared_norms(
        [rows.rows[i].g for i in there],
        [rows.rows[i].stacked for i in there],
        c.chosen.norm_axes,
    )
    for i, x in zip(there, squared, strict=True):
        histories[i], scales[i] = clipping.record(histories[i], x, count, c.percentile_clipping)
    return histories, scales


def _leaves(c, rows, scales, count, next_count, emit):
    """The `Leaf` of every row that has a gradient, by its number."""
    scalars = _scalars(c, count, next_count)
    digits, codecs = even_digits(c.rule, scalars), c.codecs
    decay = "decoupled" if c.adam_w_mode else "coupled"

    def leaf(row, grad_scale):
        s = scalars._replace(grad_scale=grad_scale)
        if not isinstance(row.decays, bool):  # a traced mask
            s = s._replace(weight_decay=jnp.where(row.decays, s.weight_decay, 0))
        dither = Dither(next_count.astype(jnp.uint32), jnp.uint32(zlib.crc32(row.name.encode())))
        spec = Spec(
            c.rule,
            codecs,
            c.block_size,
            None if row.decays is False else decay,
            emit,
            c.chosen.implementation,
            stacked=row.stacked,
            count_skipped=c.chosen.count_skipped,
        )
        return Leaf(row.g, row.p, row.slots, s, dither.scrambled(digits), spec)

    pairs = enumerate(zip(rows.rows, scales, strict=True))
    return {i: leaf(row, scale) for i, (row, scale) in pairs if row.g is not None}


def _scalars(c, count, next_count):
    """The step's scalars. Schedules see the steps taken before this one, as in Optax."""

    def at(value) -> Any:
        return value(count) if callable(value) else value

    low, high = (0.0, math.inf) if c.trust_clip is None else c.trust_clip
    return Scalars(
        c.rule.scalars(at, c.numbers, next_count),
        step_size=1.0 if c.learning_rate is None else -1 * at(c.learning_rate),
        weight_decay=at(c.weight_decay),
        ratio_scale=1.0 if c.max_unorm is None else at(c.max_unorm),
        ratio_low=low,
        ratio_high=high if c.max_unorm is None else 1.0,
    )


def _paged(c, rows):
    """The numbers of the rows whose state is paged."""
    if not c.paged:
        return set()
    there = [i for i, row in enumerate(rows) if row.slots[0].values is not None]
    extents = [extent_of(c.rule, rows[i].slots, c.block_size) for i in there]
    flags = which_are_paged(extents, c.chosen)
    return {i for i, paged in zip(there, flags, strict=True) if paged}


# -------------------------------------------------------------------------------- what comes of it


def _next_state(c, state, count, rows, histories, stepped):
    slots = [stepped[i].slots if i in stepped else row.slots for i, row in enumerate(rows.rows)]
    fields: dict[str, Any] = {"count": count, "layout": state.layout}
    for i, slot in enumerate(c.rule.slots):
        fields[slot.name] = rows.tree.unflatten([x[i].values for x in slots])
        if getattr(state, absmax := f"{slot.name}_absmax") is not None:
            # A leaf without codes keeps what stands for its scales.
            fields[absmax] = rows.tree.unflatten(
                [
                    x[i].absmax if x[i].coded else row.absmaxes[i]
                    for x, row in zip(slots, rows.rows, strict=True)
                ]
            )
    if c.clips:
        fields["gnorm_history"] = rows.tree.unflatten(histories)
    if c.chosen.count_skipped:
        fields["skipped"] = _add_up(state.skipped, [x.skipped for x in stepped.values()])
    return c.state_type(**fields)


def _add_up(skipped, of_leaves):
    """The count of skipped elements, of all steps; it stays at the largest int32."""
    largest = jnp.iinfo(jnp.int32).max
    # Leaf by leaf, as a float32 number can be too large for an int32 and is exact up to 2**24.
    for x in of_leaves:
        x = jnp.where(x < 2.0**31, x, 0).astype(jnp.int32) + jnp.where(x < 2.0**31, 0, largest)
        skipped = jnp.where(skipped > largest - x, largest, skipped + x)
    return skipped
