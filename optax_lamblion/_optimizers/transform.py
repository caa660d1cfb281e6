"""From a rule to an Optax transformation.

Everything that varies from step to step becomes a scalar here, once per step or per leaf; the steps
of leaves (`_steps`) are called with nothing else.
"""

import functools
import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_lamblion._mesh import regions
from optax_lamblion._mesh.one_mesh import check_one_mesh
from optax_lamblion._optimizers import clipping, norms
from optax_lamblion._optimizers.fused import Applied
from optax_lamblion._optimizers.scaled import REQUEST, Origin, request_of, times
from optax_lamblion._optimizers.settings import Settings, check_scalar
from optax_lamblion._paging.pages import extent_of
from optax_lamblion._paging.placement import check_host_memory, refuse_multi_steps, which_are_paged
from optax_lamblion._state import checks, fresh
from optax_lamblion._state.names import chosen, path_string
from optax_lamblion._state.types import HISTORY
from optax_lamblion._steps.steps import step_leaves
from pallas_kernels.arithmetic.dither import Dither, even_digits
from pallas_kernels.arithmetic.params import is_16bit
from pallas_kernels.arithmetic.rules import Scalars
from pallas_kernels.arithmetic.step import Spec
from pallas_kernels.leaf import Leaf, StoredSlot


def make(c: Settings) -> optax.GradientTransformationExtraArgs:
    """The Optax transformation of these settings."""
    return optax.GradientTransformationExtraArgs(
        functools.partial(_init, c), functools.partial(_update, c)
    )


def _init(c, params):
    if c.paged:
        refuse_multi_steps()
        check_host_memory(c.bits, c.resident_name)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    check_one_mesh(((path_string(path), [p]) for path, p in leaves), one_device=c.paged)
    return fresh.init_state(c, params)


def _update(c, updates, state, params=None, **extra_args):
    checks.check_call(c, updates, state, params)
    checks.check_state(c, state)
    if c.paged:
        refuse_multi_steps()
    count: Any = jnp.asarray(state.count, jnp.int32)
    # What a `scale_by_` form returns is no update yet, so it cannot be added to parameters here.
    apply = REQUEST in extra_args and c.learning_rate is not None
    step = _Step(count, optax.safe_increment(count), "params" if apply else "updates")
    tree, rows = _rows(c, updates, state, params)
    request = request_of(extra_args)
    rows = [row if row.g is None else row.made_of(request.origin(row.g)) for row in rows]
    check_one_mesh(((row.name, row.arrays) for row in rows), one_device=c.paged)
    if c.clips:
        rows = _clipped(c, rows, step)
    leaves = _leaves(c, rows, step)
    paged = _paged(c, rows, leaves) if c.paged else {}
    stepped = step_leaves(
        {i: leaf for i, leaf in leaves.items() if i not in paged},
        {i: leaf for i, leaf in leaves.items() if i in paged},
        [row.name for row in rows],
        c.chosen,
    )
    outs = [stepped[i].out if i in stepped else None for i in range(len(rows))]
    if apply:
        outs = [None if out is None else Applied(out) for out in outs]
    return tree.unflatten(outs), _next_state(c, state, step, tree, rows, stepped)


class _Step(NamedTuple):
    """Which step it is."""

    count: Any
    """The steps taken before it, which is what schedules see, as in Optax."""
    number: Any
    emit: str


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
    keeps_32bit: bool
    state: dict[str, Any]
    """The leaves of `Settings.fields`, by name; None for a None in place of a parameter."""
    slots: tuple[StoredSlot, ...] = ()
    residual: Any = None
    """What the parameter lacks of its value; None if it has no residual."""
    grad_scale: Any = None
    """What the gradient is to be multiplied by, a scalar or one for every layer; None for 1."""
    squared: Any = None
    """The squared norm of the product, if it is known."""

    def made_of(self, origin):
        """It, with the gradient that its own is a multiple of."""
        return self._replace(g=origin.raw, grad_scale=origin.scale, squared=origin.squared)

    @property
    def arrays(self):
        """Its gradient, parameter, moments and residual."""
        return self.g, self.p, *(slot.values for slot in self.slots), self.residual


def _rows(c, updates, state, params):
    """The structure of the gradients, and a `_Row` for each."""
    paths_and_grads, tree = jax.tree_util.tree_flatten_with_path(
        updates, is_leaf=lambda x: x is None
    )
    names = [path_string(path) for path, _ in paths_and_grads]
    of_state = {
        field: _leaves_like(
            tree,
            getattr(state, field),
            f"The state's `{field}`",
            "Make a new state with `tx.init(params)`",
        )
        for field in c.fields
    }
    no, yes = [False] * len(names), [True] * len(names)
    options = c.chosen
    columns = zip(
        names,
        [g for _, g in paths_and_grads],
        _leaves_like(tree, params, "`params`", "Call `tx.update(grads, state, params)`"),
        (yes if c.mask is None else tree.flatten_up_to(_mask(c, params))) if c.decays else no,
        no if options.stacked is None else tree.flatten_up_to(options.are_stacked(updates)),
        no if options.keep_32bit is None else tree.flatten_up_to(options.keeps_32bit(updates)),
        [dict(zip(of_state, x, strict=True)) for x in zip(*of_state.values(), strict=True)],
        strict=True,
    )
    return tree, [_with_slots(c, _Row(*column)) for column in columns]


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


def _mask(c, params):
    """Which leaves decay: a tree of bools (Python's where they are) like `params`."""
    return chosen("mask", c.mask, params, lambda function: function(params))


def _with_slots(c, row):
    """A row with its slots. Raises unless they fit the gradient, and that the parameter."""
    if row.g is not None:
        checks.check_gradient(row.name, row.g, row.p)
    residual = None
    if c.keeps_residuals and row.p is not None and row.state["residual"] is not None:
        has_residual = c.has_residual(row.p.dtype)
        checks.check_residual(row.name, row.state["residual"], row.p, has_residual)
        residual = row.state["residual"] if has_residual else None
    slots = tuple(_slot(c, row, slot.name) for slot in c.rule.slots)
    return row._replace(slots=slots, residual=residual)


def _slot(c, row, field):
    values, absmax = row.state[field], row.state[f"{field}_absmax"]
    coded = values is not None and values.dtype == jnp.uint8
    if row.g is not None:
        leaf, shape = f"{field}[{row.name!r}]", row.g.shape
        checks.check_slot(leaf, values, absmax, shape, c.block_size, of="the gradient")
        # Where the settings say the same, shapes need not tell.
        if coded != c.codes(shape, row.keeps_32bit) and not checks.shapes_tell(values, absmax):
            values, absmax = checks.told_apart(leaf, values, absmax)
    return StoredSlot(values, absmax if coded else None)


# ------------------------------------------------------------------------------- from row to leaf


def _clipped(c, rows, step):
    """Rows with the history and the scale of every gradient's norm."""
    there = [row for row in rows if row.g is not None]
    for row in there:
        shape = (*row.g.shape[:1], HISTORY) if row.stacked else (HISTORY,)
        checks.check_history(row.name, row.state["gnorm_history"], shape)
    regions.check_norm_axes([row.g for row in there], c.chosen.norm_axes)
    squared = iter(
        norms.squared_norms_of_finite(
            [Origin(row.g, row.grad_scale, row.squared) for row in there],
            [row.stacked for row in there],
            c.chosen.norm_axes,
        )
    )

    def clipped(row):
        if row.g is None:
            return row
        history, scale = clipping.record(
            jnp.asarray(row.state["gnorm_history"]),
            next(squared),
            step.number,
            c.percentile_clipping,
        )
        state = row.state | {"gnorm_history": history}
        return row._replace(state=state, grad_scale=times(row.grad_scale, scale))

    return [clipped(row) for row in rows]


def _leaves(c, rows, step):
    """The `Leaf` of every row that has a gradient, by its number."""
    scalars = _scalars(c, step)
    digits = even_digits(c.rule, scalars)
    decay = "decoupled" if c.adam_w_mode else "coupled"
    number = step.number.astype(jnp.uint32)

    def leaf(row):
        s = scalars._replace(grad_scale=row.grad_scale)
        if not isinstance(row.decays, bool):  # a traced mask
            s = s._replace(weight_decay=jnp.where(row.decays, s.weight_decay, 0))
        dither = Dither(number, jnp.uint32(zlib.crc32(row.name.encode())))
        spec = Spec(
            c.rule,
            c.codecs,
            c.block_size,
            None if row.decays is False else decay,
            step.emit,
            c.chosen.implementation,
            stacked=row.stacked,
            count_skipped=c.chosen.count_skipped,
            param_rounding=_rounding(c, row, step),
            update_dtype=c.chosen.update_dtype,
        )
        return Leaf(
            row.g, row.p, row.slots, s, dither.scrambled(digits), spec, residual=row.residual
        )

    return {i: leaf(row) for i, row in enumerate(rows) if row.g is not None}


def _rounding(c, row, step):
    """How a parameter is rounded. Raises `ValueError` where that is not for the optimizer to do."""
    rounding, like = c.chosen.param_rounding, row.g if row.p is None else row.p
    if rounding == "nearest" or not is_16bit(like.dtype):
        return "nearest"
    if step.emit != "params":
        raise ValueError(
            f'`param_rounding="{rounding}"` is for an optimizer that writes parameters itself, and '
            f"`update` returns what is to be added to them (parameter {row.name!r}, "
            f"{like.dtype}). Step with `apply_fused(tx, params, grads, state)`. Under "
            "`optax.MultiSteps` and other wrappers that choose between steps it has updates added, "
            "too: accumulate gradients outside of the optimizer."
        )
    return rounding


def _scalars(c, step):
    """The step's scalars."""

    def now(name, value) -> Any:
        if not callable(value):
            return value
        value = value(step.count)
        check_scalar(name, value)
        return value

    low, high = (0.0, math.inf) if c.trust_clip is None else c.trust_clip
    largest = None if c.max_unorm is None else now("max_unorm", c.max_unorm)
    if largest is not None:  # 0 is off: a ratio of 1
        known = isinstance(largest, int | float)
        low = float(largest == 0) if known else jnp.where(largest > 0, 0.0, 1.0)
        high = 1.0
    return Scalars(
        c.rule.scalars({name: now(name, x) for name, x in c.numbers.items()}, step.number),
        1.0 if c.learning_rate is None else -1 * now("learning_rate", c.learning_rate),
        now("weight_decay", c.weight_decay),
        ratio_scale=1.0 if largest is None else largest,
        ratio_low=low,
        ratio_high=high,
    )


def _paged(c, rows, leaves):
    """The numbers of the leaves whose state is paged."""
    there = [i for i, row in enumerate(rows) if row.slots[0].values is not None]
    extents = [
        extent_of(c.rule, rows[i].slots, c.block_size, residual=rows[i].residual) for i in there
    ]
    flags = which_are_paged(extents, c.chosen)
    return leaves.keys() & {i for i, paged in zip(there, flags, strict=True) if paged}


# -------------------------------------------------------------------------------- what comes of it


def _next_state(c, state, step, tree, rows, stepped):
    new = [dict(row.state) for row in rows]
    for i, x in stepped.items():
        for slot, stored in zip(c.rule.slots, x.slots, strict=True):
            new[i][slot.name] = stored.values
            if stored.coded:  # what is not keeps what stands for its scales
                new[i][f"{slot.name}_absmax"] = stored.absmax
        if x.residual is not None:
            new[i]["residual"] = x.residual
    fields: dict[str, Any] = {
        field: tree.unflatten([x[field] for x in new])
        for field in c.fields
        if getattr(state, field) is not None
    }
    if c.chosen.count_skipped:
        before = jnp.asarray(state.skipped, jnp.int32)
        fields["skipped"] = _add_up(before, [x.skipped for x in stepped.values()])
    return c.state_type(count=step.number, layout=state.layout, **fields)


def _add_up(skipped, of_leaves):
    """The count of skipped elements, of all steps; it stays at the largest int32."""
    largest = jnp.iinfo(jnp.int32).max
    # Leaf by leaf, as a float32 number can be too large for an int32 and is exact up to 2**24.
    for x in of_leaves:
        x = jnp.where(x < 2.0**31, x, 0).astype(jnp.int32) + jnp.where(x < 2.0**31, 0, largest)
        skipped = jnp.where(skipped > largest - x, largest, skipped + x)
    return skipped
