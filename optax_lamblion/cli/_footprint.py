"""What an optimizer's step finds and needs in the memory of a device.

Parameters, gradients and state are computed, from their shapes. What a step needs beside them is
up to XLA, so it is an estimate. It was read off compiled programs, with which tests compare it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from optax_lamblion import StateOptions, state_report
from optax_lamblion.demo import shapes
from optax_lamblion.demo.optimizers import OptimizerRow


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a model is trained, as far as memory is concerned.

    - `model`: the shapes of its parameters, of which there are `parameters`.
    - `dtype`, `grad_dtype`: of parameters and gradients; None for gradients as the parameters.
    - `master`: whether the optimizer steps a float32 copy of the parameters.
    - `param_rounding`: how it writes 16-bit parameters; Optax's optimizers only round to nearest.
    - `devices`: over how many devices everything is sharded evenly.
    - `platform`: `"gpu"` or `"cpu"`.
    """

    model: Mapping[str, shapes.Shape]
    dtype: str = "float32"
    grad_dtype: str | None = None
    master: bool = False
    param_rounding: str = "nearest"
    devices: int = 1
    platform: str = "gpu"

    @property
    def parameters(self) -> int:
        """How many there are."""
        return shapes.count(self.model)

    @property
    def gradient_dtype(self) -> str:
        """The dtype of the gradients."""
        return self.grad_dtype or self.dtype

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
class State:
    """Bytes of the whole state of an optimizer, by the memory that they are in."""

    device_bytes: int
    host_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return self.device_bytes + self.host_bytes


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


def state(row: OptimizerRow, setting: Setting) -> State:
    """What the real `init` returns for parameters of these shapes."""
    # Equal shapes have equal state, and a model has few that differ: `init` is traced for one of
    # each. Pages do not change what is in a state, but each of them would be traced, too.
    times = Counter(setting.model.values())
    names = {f"shape{i}": shape for i, shape in enumerate(times)}
    options = StateOptions(param_rounding=setting.param_rounding, page_bytes=2**60)
    more = {"options": options} if row.ours else {}
    tx = row.factory(row.learning_rate, weight_decay=row.weight_decay, **more)
    form = jax.eval_shape(tx.init, shapes.as_structs(names, setting.stepped_dtype))
    on_device = on_host = 0
    for leaf in state_report(form).leaves:
        shape = names.get(leaf.path.rpartition("/")[2])
        nbytes = leaf.nbytes * (1 if shape is None else times[shape])
        if leaf.memory_kind == "device":
            on_device += nbytes
        else:
            on_host += nbytes
    return State(on_device, on_host)


def footprint(row: OptimizerRow, setting: Setting, state: State) -> Footprint:
    """The memory of one device at a step of this optimizer, with its `state` as computed."""
    count, devices = setting.parameters, setting.devices
    is_one_memory = setting.platform == "cpu"

    def part(nbytes):
        return -(-nbytes // devices)

    return Footprint(
        parameter_bytes=part(count * _itemsize(setting.dtype)),
        master_bytes=part(4 * count) if setting.master else 0,
        gradient_bytes=part(count * _itemsize(setting.gradient_dtype)),
        state_bytes=part(state.nbytes if is_one_memory else state.device_bytes),
        step_bytes=_step_bytes(row, setting, part(state.host_bytes)),
        host_state_bytes=0 if is_one_memory else part(state.host_bytes),
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
        keeps = setting.param_rounding == "compensated" and itemsize < 4
        per_parameter = _with_residuals_on_cpu if keeps and row.ours else _per_parameter_on_cpu
        step = per_parameter(row, itemsize) * setting.parameters
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
        # Partial sums of norms; and of 8-bit moments what is made of their scales.
        return 1.07 if row.bits == 8 else 1.04
    # The scale of every block, its inverse and its rounding.
    return 4 * 3 * len(rule.slots) / StateOptions().block_size if row.bits == 8 else 0


def _with_residuals_on_cpu(row: OptimizerRow, itemsize: int) -> float:
    """The same with residuals, which XLA for CPUs computes from arrays in float32."""
    if len(row.rule.slots) > 1:
        return 6.67
    return 2.7 if row.bits == 8 else 3


def _leaves_on_gpu(row: OptimizerRow, itemsize: int) -> int:
    """How many arrays of the size of the largest leaf, as compiled for an H200.

    How parameters are rounded is taken to change nothing: that was compiled for 8-bit state only.
    """
    rule = row.rule
    if not row.ours:
        return 0 if rule.form == "sign" else 1
    if not rule.ratio:  # one pass, by a kernel or by XLA, which keeps updates of Adam in float32
        return 0 if row.bits == 8 or rule.form == "sign" or itemsize < 4 else 1
    # Kernels make the direction twice. XLA keeps it, and in float32 mostly another array.
    return 0 if row.bits == 8 or itemsize < 4 else 2


def _itemsize(dtype: str) -> int:
    return jnp.dtype(dtype).itemsize
