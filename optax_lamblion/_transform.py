"""From a rule to an Optax transformation.

Everything that varies from step to step becomes a scalar here, once per step or per leaf; the step
itself (`pallas_kernels._dispatch`) is called leaf by leaf with nothing else.
"""

import dataclasses
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_lamblion import _checks, _clipping, _state
from optax_lamblion._fused import REQUEST, Applied
from optax_lamblion._layout import Layout
from optax_lamblion._leaf import Leaf
from optax_lamblion._options import StateOptions
from optax_lamblion._placement import check_host_memory, refuse_multi_steps
from optax_lamblion._steps import step_leaves
from optax_lamblion._trees import bools_like, path_string
from pallas_kernels import rules
from pallas_kernels.codecs import get_codec
from pallas_kernels.dither import Dither, even_digits
from pallas_kernels.step import Spec


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """What the public factories pass on; numbers may be schedules or traced values."""

    rule: rules.Rule
    state_type: Any
    b1: Any
    b2: Any
    learning_rate: Any = None
    """None for a building block, which returns the direction itself."""
    eps: Any = 0.0
    weight_decay: Any = 0.0
    mask: Any = None
    adam_w_mode: bool = True
    bias_correction: bool = False
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
        return StateOptions() if self.options is None else self.options

    @property
    def block_size(self) -> int | None:
        """Elements that share a scale; None for all of a leaf."""
        return self.chosen.block_size if self.block_wise else None

    @property
    def layout(self) -> Layout:
        """How leaves in 8 bits are stored."""
        return Layout(self.chosen.codec, self.block_size)

    @property
    def resident_name(self):
        """What the optimizer is called whose state is the same, and stays on the device."""
        family = "lamb" if self.rule.trust_ratio else "lion"
        return f"{family}8bit" if self.bits == 8 else family


def make(settings: Settings) -> optax.GradientTransformationExtraArgs:
    """The Optax transformation of these settings."""
    c = settings
    _checks.check_settings(c)
    options, block_size = c.chosen, c.block_size
    bits = 32 if c.bits is None else c.bits
    min_8bit_size = options.min_8bit_size if c.min_8bit_size is None else c.min_8bit_size
    clipping = not _checks.is_off(c.percentile_clipping)
    decays = not (_checks.is_number(c.weight_decay) and c.weight_decay == 0)
    codecs = {slot.name: get_codec(options.codec, slot.signed) for slot in c.rule.slots}
    slot_names = tuple(codecs)
    absmax_names = tuple(f"{name}_absmax" for name in slot_names)

    def spec(decays, emit, stacked):
        decay = ("decoupled" if c.adam_w_mode else "coupled") if decays else None
        return Spec(
            c.rule,
            tuple(codecs.values()),
            block_size,
            decay,
            emit,
            stacked=stacked,
            count_skipped=options.count_skipped,
        )

    def init(params):
        if c.paged:
            refuse_multi_steps()
            check_host_memory(c.resident_name)
        return _state.init_state(
            c.state_type,
            c.rule,
            codecs,
            params,
            bits=bits,
            layout=c.layout,
            min_8bit_size=min_8bit_size,
            options=options,
            clipping=clipping,
            paged=c.paged,
        )

    def update(updates, state, params=None, **extra_args):
        # A building block leaves the rest of the step to others, so it has nothing to apply.
        apply = extra_args.get(REQUEST, False) and c.learning_rate is not None
        if params is None and (decays or c.rule.trust_ratio):
            why = "the trust ratio" if c.rule.trust_ratio else "weight decay"
            raise ValueError(
                f"`update` needs `params` because {why} uses them. "
                "Call `tx.update(grads, state, params)`."
            )
        _checks.check_state(c, state, clipping)
        if c.paged:
            refuse_multi_steps()
        count: Any = optax.safe_increment(state.count)
        scalars = _scalars(c, state.count, count)
        digits = even_digits(c.rule, scalars)

        paths_and_grads, treedef = jax.tree_util.tree_flatten_with_path(
            updates, is_leaf=lambda x: x is None
        )

        def leaves(tree, what="`params`", remedy="Call `tx.update(grads, state, params)`"):
            if tree is None:
                return [None] * treedef.num_leaves
            try:
                return treedef.flatten_up_to(tree)
            except ValueError as error:
                raise ValueError(
                    f"{what} must have the structure of the gradients: {error} {remedy}."
                ) from None

        def columns(*fields):  # one tuple per leaf
            made = "Make a new state with `tx.init(params)`"
            return zip(
                *(leaves(getattr(state, f), f"The state's `{f}`", made) for f in fields),
                strict=True,
            )

        def check(name, g, p, old, old_absmaxes):
            _checks.check_gradient(name, g)
            _state.check_leaf(name, g, (slot_names, old), old_absmaxes, block_size)
            _checks.check_param(name, g, p)

        def prepare(name, g, p, decay, stacked, old, old_absmaxes, grad_scale):
            """What the step of a leaf is made from."""
            s = scalars._replace(grad_scale=grad_scale)
            if not isinstance(decay, bool):  # a traced mask
                s = s._replace(weight_decay=jnp.where(decay, s.weight_decay, 0))
            used = tuple(
                a if x.dtype == jnp.uint8 else None for a, x in zip(old_absmaxes, old, strict=True)
            )
            dither = Dither(count.astype(jnp.uint32), jnp.uint32(zlib.crc32(name.encode())))
            static = spec(decay is not False, "params" if apply else "updates", stacked)
            return Leaf(static, g, p, old, used, s, dither.scrambled(digits))

        paths = [path_string(path) for path, _ in paths_and_grads]
        grads = [g for _, g in paths_and_grads]
        decay = leaves(_decay_mask(c.mask, params)) if decays else [False] * len(grads)
        histories = leaves(state.gnorm_history)
        slots, absmaxes = list(columns(*slot_names)), list(columns(*absmax_names))
        stacked = treedef.flatten_up_to(options.are_stacked(updates))
        params_leaves = leaves(params)
        there = [i for i, g in enumerate(grads) if g is not None]
        for i in there:
            check(paths[i], grads[i], params_leaves[i], slots[i], absmaxes[i])
        scales: list[Any] = [None] * len(grads)
        if clipping:
            squared = _clipping.squared_norms(
                [grads[i] for i in there], [stacked[i] for i in there], options.norm_axes
            )
            for i, x in zip(there, squared, strict=True):
                histories[i], scales[i] = _clipping.record(
                    histories[i], x, count, c.percentile_clipping
                )
        rows = zip(
            paths, grads, params_leaves, decay, stacked, slots, absmaxes, scales, strict=True
        )
        given = [None if row[1] is None else prepare(*row) for row in rows]

        paged = [False] * len(grads)
        if c.paged:
            paged = leaves(_state.paged_leaves(c.rule, state, block_size, options))
        outs: list[Any] = [None] * len(grads)
        stepped = step_leaves(given, paged, options, paths)
        for i, (out, slots[i], new, _) in stepped.items():
            outs[i] = Applied(out) if apply else out
            # A leaf without codes keeps what stands for its scales.
            absmaxes[i] = tuple(
                old if a is None else a for a, old in zip(new, absmaxes[i], strict=True)
            )

        fields: dict[str, Any] = {"count": count, "layout": state.layout}
        for i, (slot, absmax) in enumerate(zip(slot_names, absmax_names, strict=True)):
            fields[slot] = treedef.unflatten([x[i] for x in slots])
            if getattr(state, absmax) is not None:
                fields[absmax] = treedef.unflatten([x[i] for x in absmaxes])
        if clipping:
            fields["gnorm_history"] = treedef.unflatten(histories)
        if options.count_skipped:
            fields["skipped"] = _add_up(state.skipped, [x.skipped for x in stepped.values()])
        return treedef.unflatten(outs), c.state_type(**fields)

    return optax.GradientTransformationExtraArgs(init, update)


def _scalars(c, count, next_count):
    """The step's scalars. Schedules see the steps taken before this one, as in Optax."""

    def at(value) -> Any:
        return value(count) if callable(value) else value

    b1, b2 = at(c.b1), at(c.b2)
    low, high = (0.0, math.inf) if c.trust_clip is None else c.trust_clip
    return rules.Scalars(
        b1=b1,
        one_minus_b1=1 - b1,
        b2=b2,
        one_minus_b2=1 - b2,
        debias1=rules.debias(b1, next_count) if c.bias_correction else 1.0,
        debias2=rules.debias(b2, next_count) if c.bias_correction else 1.0,
        eps=at(c.eps),
        weight_decay=at(c.weight_decay),
        step_size=1.0 if c.learning_rate is None else -1 * at(c.learning_rate),
        ratio_scale=1.0 if c.max_unorm is None else at(c.max_unorm),
        ratio_low=low,
        ratio_high=high if c.max_unorm is None else 1.0,
    )


def _add_up(skipped, of_leaves):
    """The count of skipped elements, of all steps; it stays at the largest int32."""
    largest = jnp.iinfo(jnp.int32).max
    # Leaf by leaf, as a float32 number can be too large for an int32 and is exact up to 2**24.
    for x in of_leaves:
        x = jnp.where(x < 2.0**31, x, 0).astype(jnp.int32) + jnp.where(x < 2.0**31, 0, largest)
        skipped = jnp.where(skipped > largest - x, largest, skipped + x)
    return skipped


def _decay_mask(mask, params):
    """A tree of bools (Python's where they are) like `params`."""
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    tree = mask(params) if callable(mask) else mask
    return bools_like("mask", tree, params)
