"""The time of an optimizer step, next to that of others on the same arrays.

Absolute times differ from machine to machine and from minute to minute. So contestants take turns,
each turn starting with another one of them, and what counts is the ratio of two times of the same
turn, of which the median is reported with its quartiles.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_lamblion import apply_fused

type Carry = tuple[Any, Any]
"""Parameters and state: what a step is given and returns, in the same memory."""
type Step = Callable[[Carry, Any], Carry]
"""What takes a carry and gradients, and returns the next carry."""

WAYS = ("apply_fused", "update")
"""How an optimizer of this library can step: see `stepping`."""
_WARM_UP = 3
_SAMPLE_MS = 20.0  # shorter steps are timed several at a time
_MOST_CALLS = 200


class Contestant(Protocol):
    """Whatever can be timed. Its times are milliseconds of one step."""

    def warm_up(self) -> float:
        """Takes a few steps and returns about how long `sample` will take, in milliseconds."""
        ...

    def sample(self) -> float:
        """Takes one step, or several, and returns the time of one."""
        ...


class Compiled(NamedTuple):
    """A compiled step, what JAX and XLA took to get it ready, and what it needs besides its arrays.

    - `call(carry, gradients)` takes a step, and the memory of the carry.
    """

    call: Callable[[Carry, Any], Carry]
    trace_seconds: float
    compile_seconds: float
    temporary_bytes: int


def compiled(
    step: Step, carry: Carry, gradients: Any, options: Mapping[str, str] | None = None
) -> Compiled:
    """Compiles a step for such arrays, or for their shapes; `options` are those of XLA."""
    start = time.perf_counter()
    # A function of its own, or JAX would remember what it traced for another contestant.
    jitted = jax.jit(functools.partial(step), donate_argnums=0)
    lowered = jitted.trace(carry, gradients).lower()
    traced = time.perf_counter()
    call = lowered.compile(None if options is None else dict(options))
    done = time.perf_counter()
    analysis = call.memory_analysis()
    temporary = int(analysis.temp_size_in_bytes) if analysis else 0
    return Compiled(call, traced - start, done - traced, temporary)


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays, or of what has their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Program:
    """A step that is compiled, with its own parameters and state, which it updates in place."""

    def __init__(
        self,
        step: Step,
        carry: Carry,
        gradients: Any,
        options: Mapping[str, str] | None = None,
    ):
        self.compiled = compiled(step, carry, gradients, options)
        self.state_bytes = bytes_of(carry[1])
        self._carry, self._gradients = carry, gradients
        self._calls = 1

    def warm_up(self) -> float:
        """See `Contestant`."""
        ms = [self._time(1) for _ in range(_WARM_UP)][-1]
        self._calls = min(max(math.ceil(_SAMPLE_MS / ms), 1), _MOST_CALLS)
        return self._calls * ms

    def sample(self) -> float:
        """See `Contestant`."""
        return self._time(self._calls)

    def _time(self, calls):
        start = time.perf_counter()
        for _ in range(calls):
            self._carry = self.compiled.call(self._carry, self._gradients)
        jax.block_until_ready(self._carry)
        return 1e3 * (time.perf_counter() - start) / calls


def take_turns(
    contestants: Sequence[Contestant], turns: int | None = None, seconds: float = 10.0
) -> list[list[float]]:
    """The times of each contestant, in milliseconds: one of every turn.

    Args:
      contestants: They are warmed up here.
      turns: How many. Without it, about as many as fit into the seconds: from 5 to 40.
      seconds: See `turns`.
    """
    turn_seconds = sum(contestant.warm_up() for contestant in contestants) / 1e3
    if turns is None:
        turns = min(max(round(seconds / turn_seconds), 5), 40)
    times: list[list[float]] = [[] for _ in contestants]
    for turn in range(turns):
        for i in range(len(contestants)):
            at = (turn + i) % len(contestants)
            times[at].append(contestants[at].sample())
    return times


def quartiles(values: Sequence[float]) -> list[float]:
    """The first, second (the median) and third quartile."""
    return [float(x) for x in np.quantile(values, (0.25, 0.5, 0.75))]


def ratios(times: Sequence[float], to: Sequence[float]) -> list[float]:
    """Quartiles of the ratios to another contestant's times, turn by turn.

    Within one turn a machine hardly changes, so their median is steadier than the ratio of two
    medians where other programs run.
    """
    return quartiles([x / y for x, y in zip(times, to, strict=True)])


def stepping(tx: optax.GradientTransformation, way: str = "update") -> Step:
    """The step of an optimizer, one of `WAYS`.

    `"apply_fused"` writes the parameters where the moments are computed, `"update"` is
    `tx.update` and `optax.apply_updates`.
    """

    def step(carry, gradients):
        params, state = carry
        if way == "apply_fused":
            return apply_fused(tx, params, gradients, state)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def copying(carry: Carry, gradients: Any) -> Carry:
    """Moves the bytes of a step and computes nothing: what no step can be faster than.

    It reads the gradients, and reads and writes parameters and state. One operation on integers for
    each element is what makes it a program that XLA does not leave out.
    """
    params, state = carry
    params = jax.tree.map(lambda p, g: _with_bits(p, _bits(g.astype(p.dtype))), params, gradients)
    return params, jax.tree.map(lambda x: _with_bits(x, 1), state)


def _with_bits(x, other):
    return jax.lax.bitcast_convert_type(_bits(x) ^ other, x.dtype)


def _bits(x):
    return jax.lax.bitcast_convert_type(x, {1: "uint8", 2: "uint16", 4: "uint32"}[x.itemsize])


def parameters(shapes: Mapping[str, tuple[int, ...]], dtype) -> dict[str, jax.Array]:
    """Parameters of these shapes."""
    return {name: jnp.asarray(_normal(shape), dtype) for name, shape in shapes.items()}


def gradients(shapes: Mapping[str, tuple[int, ...]], dtype) -> dict[str, jax.Array]:
    """Gradients of these shapes, of usual size."""
    return {name: jnp.asarray(1e-2 * _normal(shape), dtype) for name, shape in shapes.items()}


def _normal(shape):
    """Normally distributed numbers, which repeat in large arrays: drawing them would take long."""
    return np.resize(_pool(), shape)


@functools.cache
def _pool():
    size = 1_000_003  # a prime, so that no rows are alike
    return np.random.default_rng(0).standard_normal(size, np.float32)
