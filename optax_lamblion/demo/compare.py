"""Training one task with several optimizers, side by side.

The optimizers take turns: step 0 of each, then step 1 of each. So all of them see the same batch
and the same moods of the machine, and at any moment the comparison is complete up to that step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_lamblion import apply_fused
from optax_lamblion.demo.task import Batch, Task
from optax_lamblion.demo.ways import Way, in_float32


class Run:
    """One optimizer on its way through a task.

    - `train_losses[i]` is the loss on batch `i`, before the step that used it.
    - `held_out[k]` is what `task.evaluate` measured after `held_out_steps[k]` steps.
    - `step_ms[i]` is the time of step `i` until its loss was known. Compilation is not in it.
    - `way` is how its parameters are kept, if that is what is compared. `held_out[k]` then has the
      loss of the same parameters in 16 bits, too, as `"loss_16bit"`.
    """

    def __init__(
        self,
        name: str,
        task: Task,
        tx: optax.GradientTransformation,
        batch: Batch,
        way: Way | None = None,
    ):
        self.name = name
        self.task = task
        self.way = way
        self.train_losses: list[float] = []
        self.held_out_steps: list[int] = []
        self.held_out: list[Mapping[str, float]] = []
        self.step_ms: list[float] = []
        # Steps donate their parameters, and the task's start is shared by all runs.
        self.params = jax.tree.map(jnp.copy, way.start(task.params) if way else task.params)
        self.state = jax.jit(tx.init)(self.params)
        fused = way is not None
        self._step = compile_step(task.loss, tx, self.params, self.state, batch, fused=fused)

    def advance(self, batch: Batch) -> None:
        """Takes one step and waits for it."""
        start = time.perf_counter()
        self.params, self.state, loss = self._step(self.params, self.state, batch)
        jax.block_until_ready((self.params, self.state, loss))
        self.step_ms.append(1e3 * (time.perf_counter() - start))
        self.train_losses.append(float(loss))

    def evaluate(self) -> None:
        """Measures the held-out data."""
        values = dict(self.task.evaluate(self.weights))
        if self.way:
            values["loss_16bit"] = self.task.evaluate(self.way.halved(self.params))["loss"]
        self.held_out.append(values)
        self.held_out_steps.append(self.steps)

    @property
    def weights(self) -> Any:
        """The parameters to evaluate and to sample from, in what the model computes in."""
        return self.way.weights(self.params, self.state) if self.way else self.params

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return len(self.train_losses)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the parameters as they are stored."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    @property
    def state_bytes(self) -> int:
        """Bytes of the arrays that the optimizer keeps between steps, all of them."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))

    @property
    def bytes_per_parameter(self) -> float:
        """`state_bytes` for each parameter of the model."""
        return self.state_bytes / self.task.parameter_count

    @property
    def total_bytes_per_parameter(self) -> float:
        """`parameter_bytes` and `state_bytes` for each parameter of the model."""
        return (self.parameter_bytes + self.state_bytes) / self.task.parameter_count

    @property
    def median_step_ms(self) -> float:
        """The median time of a step in milliseconds."""
        return statistics.median(self.step_ms)


def compile_step(
    loss: Callable[[Any, Batch], jax.Array],
    tx: optax.GradientTransformation,
    params: Any,
    state: Any,
    batch: Batch,
    *,
    fused: bool = False,
) -> Callable:
    """Compiles a training step that updates `params` and `state` in place, by donation.

    `fused` makes it by `apply_fused`, with gradients in float32 whatever the parameters are in.
    """

    def step(params, state, batch):
        if fused:
            value, grads = jax.value_and_grad(loss)(in_float32(params), batch)
            return *apply_fused(tx, params, grads, state), value
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch).compile()


class Observer:
    """Hears how a comparison goes; this one does not care."""

    def compiling(self, name: str) -> None:
        """The step of optimizer `name` is about to be compiled."""

    def stepped(self, runs: Sequence[Run]) -> None:
        """Every run took one more step."""

    def evaluated(self, runs: Sequence[Run]) -> None:
        """Every run was measured on held-out data."""


def compare(
    task: Task,
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    steps: int,
    evaluations: int = 15,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    restore: Callable[[Sequence[Run]], None] = lambda runs: None,
    keep: Callable[[Sequence[Run]], None] = lambda runs: None,
    ways: Mapping[str, Way | None] = MappingProxyType({}),
) -> list[Run]:
    """Trains `task` with each optimizer for `steps` steps and returns the runs.

    Args:
      task: The problem. All runs start at its `params`.
      optimizers: Transformations by the name that results carry.
      steps: Training steps of each optimizer.
      evaluations: How often held-out data is measured on the way, the end included.
      observer: Is told of progress.
      should_stop: Asked before every step; `True` ends all runs there, evenly and evaluated.
      restore: Is given the runs before the first step, to put them where others were.
      keep: Is given them to save, as often as held-out data is measured, and when they are stopped.
      ways: How parameters are kept, by the same names, where it is not as the task has them.

    Returns:
      One `Run` per optimizer, each with the same number of steps. It is less than `steps`
      if `should_stop` said so.
    """
    observer = observer or Observer()
    runs = []
    first_batch = task.batch(0)
    for name, tx in optimizers.items():
        if should_stop():
            return runs
        observer.compiling(name)
        runs.append(Run(name, task, tx, first_batch, ways.get(name)))
    restore(runs)
    due = {round(i * steps / evaluations) for i in range(evaluations + 1)}
    if runs[0].steps in due:
        _evaluate(runs, observer)
    for step in range(runs[0].steps, steps):
        if should_stop():
            break
        batch = jax.device_put(task.batch(step))
        for run in runs:
            run.advance(batch)
        observer.stepped(runs)
        if step + 1 in due:
            _evaluate(runs, observer)
            keep(runs)
    if runs[0].steps not in due:
        keep(runs)  # as they are: a run that was never stopped is not measured here
        _evaluate(runs, observer)
    return runs


def _evaluate(runs: Sequence[Run], observer: Observer) -> None:
    """Measures all runs, unless they have been measured after this number of steps."""
    if all(run.held_out_steps[-1:] == [run.steps] for run in runs):
        return
    for run in runs:
        run.evaluate()
    observer.evaluated(runs)
