"""What an optimizer's step finds and needs in the memory of a device.

Parameters, gradients and state are computed, from their shapes. What a step needs beside them is
up to XLA, so it is an estimate. It was read off compiled programs, with which tests compare it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from optax_lamblion import StateOptions, StateReport, state_report
from optax_lamblion.demo import shapes
from optax_lamblion.demo.optimizers import OptimizerRow


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a model is trained, as far as memory is concerned.

    - `model`: the shapes of its parameters, of which there are `parameters`.
    - `dtype`, `grad_dtype`: of parameters and gradients.
    - `master`: whether the optimizer steps a float32 copy of the parameters.
    - `devices`: over how many devices everything is divided evenly.
    - `platform`: `"gpu"` or `"cpu"`.
    """

    model: Mapping[str, shapes.Shape]
    dtype: str = "float32"
    grad_dtype: str = "float32"
    master: bool = False
    devices: int = 1
    platform: str = "gpu"

    @property
    def parameters(self) -> int:
        """How many there are."""
        return shapes.count(self.model)

    @property
    def stepped_dtype(self) -> str:
        """The dtype of what the optimizer is given for parameters."""
        return "float32" if self.master else self.dtype


@dataclasses.dataclass(frozen=True)
class Room:
    """The memory of a device, and what of it there is for arrays.

    - `asked`: how its user wrote it.
    - `size`: in bytes, of which JAX takes `fraction`.
    """

    asked: str
    size: int
    fraction: float

    @property
    def taken(self) -> int:
        """Bytes that JAX takes for its arrays."""
        return math.floor(self.fraction * self.size)


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes on each device at an optimizer's step; of the host's memory, bytes for each device."""

    parameter_bytes: int
    master_bytes: int
    gradient_bytes: int
    state_bytes: int
    step_bytes: int
    host_state_bytes: int

    @property
    def total_bytes(self) -> int:
        """All that the device holds at the same time."""
        return (
            self.parameter_bytes
            + self.master_bytes
            + self.gradient_bytes
            + self.state_bytes
            + self.step_bytes
        )


def report(row: OptimizerRow, setting: Setting) -> StateReport:
    """What the real `init` returns for parameters of these shapes."""
    structs = shapes.as_structs(setting.model, setting.stepped_dtype)
    # Pages do not change what is in a state, but `init` is traced for each of them.
    whole = {"options": StateOptions(page_bytes=2**60)} if row.name.startswith("paged_") else {}
    tx = row.factory(row.learning_rate, weight_decay=row.weight_decay, **whole)
    return state_report(jax.eval_shape(tx.init, structs), structs)


def footprint(row: OptimizerRow, setting: Setting, state: StateReport) -> Footprint:
    """The memory of one device at a step of this optimizer, with its `state` as reported."""
    count, devices = setting.parameters, setting.devices
    kinds = state.by_memory_kind
    on_device = kinds.pop("device", 0)
    on_host = sum(kinds.values())
    is_one_memory = setting.platform == "cpu"

    def part(nbytes):
        return -(-nbytes // devices)

    return Footprint(
        parameter_bytes=part(count * _itemsize(setting.dtype)),
        master_bytes=part(4 * count) if setting.master else 0,
        gradient_bytes=part(count * _itemsize(setting.grad_dtype)),
        state_bytes=part(on_device + (on_host if is_one_memory else 0)),
        step_bytes=_step_bytes(row, setting, part(on_host)),
        host_state_bytes=0 if is_one_memory else part(on_host),
    )


def _step_bytes(row: OptimizerRow, setting: Setting, on_host: int) -> int:
    """Estimates what a donated step allocates on a device, with so much state on the host.

    A step of ours is `apply_fused`, one of Optax's `update` and `apply_updates`.
    """
    itemsize = _itemsize(setting.stepped_dtype)
    pages = 0
    if on_host:
        options = StateOptions()
        pages = (options.pages_in_flight + 1) * options.page_bytes
        # Float32 state takes its room twice, as the new state is written beside the old one.
        pages = min(pages, on_host * (1 if row.bits == 8 else 2))
    if setting.platform == "cpu":
        # XLA for CPUs may make something for all leaves before it uses any of it.
        step = _per_parameter_on_cpu(row, itemsize) * setting.parameters
    elif on_host:
        return pages  # which have room for all that a step needs
    else:
        # XLA for GPUs makes it for one leaf after the other, so the largest one counts.
        largest = max(map(math.prod, setting.model.values()))
        step = _leaves_on_gpu(row, itemsize) * itemsize * largest
    return pages + math.ceil(step / setting.devices)


def _per_parameter_on_cpu(row: OptimizerRow, itemsize: int) -> float:
    """Bytes for each parameter, as compiled for CPUs."""
    rule = row.rule
    if not row.ours:
        if rule.ratio:
            return 8  # direction and updates in float32
        return itemsize if rule.form == "sign" else 0  # updates, or nothing
    if rule.ratio:
        # Partial sums of norms; and of 32-bit moments the direction in float32.
        return 0.6 if row.bits == 8 else 4.54
    # Three numbers for a block of each slot.
    return 12 * len(rule.slots) / StateOptions().block_size if row.bits == 8 else 0


def _leaves_on_gpu(row: OptimizerRow, itemsize: int) -> int:
    """How many arrays of the size of the largest leaf, as compiled for an H200."""
    rule = row.rule
    if not row.ours:
        return 0 if rule.form == "sign" else 1
    if not rule.ratio:  # one pass, by a kernel or by XLA, which keeps updates of Adam in float32
        return 0 if row.bits == 8 or rule.form == "sign" or itemsize < 4 else 1
    # Kernels make the direction twice. XLA keeps it, and in float32 mostly another array.
    return 0 if row.bits == 8 or itemsize < 4 else 2


def _itemsize(dtype: str) -> int:
    return jnp.dtype(dtype).itemsize
