"""Steps of `pallas_kernels` as functions of arrays, as tests make and change them one by one."""

from typing import Any, NamedTuple

from pallas_kernels.arithmetic.rules import Scalars
from pallas_kernels.leaf import Leaf, StoredSlot


class Seen(NamedTuple):
    """What a step made of a leaf."""

    out: Any
    slots: tuple[Any, ...]
    absmaxes: tuple[Any, ...]
    skipped: Any = None


def leaf_of(spec, g, p, slots, absmaxes, s, dither, **others):
    """A `Leaf` of these arrays."""
    return Leaf(g, p, tuple(map(StoredSlot, slots, absmaxes)), s, dither, spec, **others)


def arrays_of(slots):
    """`(values, scales)` of stored slots."""
    return tuple(x.values for x in slots), tuple(x.absmax for x in slots)


def on_arrays(step):
    """A step of a leaf as `step(spec, g, p, slots, absmaxes, s, dither)`, which returns `Seen`."""

    def run(spec, *arrays):
        stepped = step(leaf_of(spec, *arrays))
        return Seen(stepped.out, *arrays_of(stepped.slots), stepped.skipped)

    return run


class SeenRounded(NamedTuple):
    """The same, and the residual of parameters or None."""

    out: Any
    slots: tuple[Any, ...]
    absmaxes: tuple[Any, ...]
    skipped: Any = None
    residual: Any = None


def with_residual(step):
    """As `on_arrays`, with a residual as the last argument, where there is one: `SeenRounded`."""

    def run(spec, g, p, slots, absmaxes, s, dither, residual=None):
        stepped = step(leaf_of(spec, g, p, slots, absmaxes, s, dither, residual=residual))
        return SeenRounded(
            stepped.out, *arrays_of(stepped.slots), stepped.skipped, stepped.residual
        )

    return run


def scalars_of(rule, count=1, *, b1=0.9, b2=0.999, eps=1e-8, bias_correction=True, **others):
    """The scalars of a rule at a step, of numbers and not of schedules."""
    numbers = dict(b1=b1, b2=b2, eps=eps, bias_correction=bias_correction)
    return Scalars(rule.scalars(numbers, count), **others)
