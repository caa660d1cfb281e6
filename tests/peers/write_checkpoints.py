"""Writes the checkpoints in `tests/interop/checkpoints`, which the tests of the library read.

Run it at the root of the checkout, in the environment of `./dev peers`:

    .venv-peers/bin/python -m tests.peers.write_checkpoints [FOLDER]

Those of `SAVED` are bitsandbytes' own, from `problem.STEPS` steps of its CPU build. Those of
`BUILT` are laid out as other versions or a GPU would have left them, by steps of `cuda_steps`.
`checkpoints.json` names the parameters of each, by their numbers in the checkpoint.
"""

import json
import pathlib
import sys
import warnings

import bitsandbytes as bnb
import numpy as np
import torch

from tests import oracles
from tests.interop import cuda_steps, problem
from tests.peers.library import CHECKPOINTS, arrays, files

LION = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
LAMB = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def tensor(name, value):
    """A parameter as PyTorch would have it: some are the transpose of what lies in memory."""
    value = torch.from_numpy(np.array(value))
    return value.t().contiguous().t() if name in problem.NOT_CONTIGUOUS else value


def optimizer_of(kind, hyperparameters, groups):
    """An optimizer of bitsandbytes and its parameters by name; later groups have no decay."""
    start = problem.params()
    params = {
        name: torch.nn.Parameter(tensor(name, start[name])) for group in groups for name in group
    }
    settings = [{"params": [params[name] for name in group]} for group in groups]
    for group in settings[1:]:
        group["weight_decay"] = 0.0
    return getattr(bnb.optim, kind)(settings, **hyperparameters), params


def take_step(optimizer, params, step, frozen=()):
    """Step `step`, from 0; what is `frozen` has no gradient."""
    for name in params.keys() - set(frozen):
        params[name].grad = torch.from_numpy(problem.gradient(name, step))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
        optimizer.step()


def saved(kind, hyperparameters, groups, frozen=()):
    """What an optimizer of bitsandbytes holds after its steps."""
    optimizer, params = optimizer_of(kind, hyperparameters, groups)
    for step in range(problem.STEPS):
        take_step(optimizer, params, step, frozen)
    return optimizer.state_dict()


SAVED = {
    "lion8bit": ("Lion8bit", LION, [["matrix", "ragged", "small", "transposed"]]),
    "lion32bit": ("Lion", LION, [["small", "matrix", "narrow"]], ["matrix"]),
    "lamb8bit": ("LAMB8bit", LAMB, [["matrix", "transposed"], ["ragged", "small"]]),
    "lamb32bit": ("LAMB", LAMB, [["small", "narrow"]]),
    "paged_lion8bit": ("PagedLion8bit", LION, [["ragged", "small"]]),
}
"""Arguments of `saved`."""


def built(rule, names, block_size=None):
    """What steps of `cuda_steps` leave, laid out as up to 0.49.1: nothing is nested.

    Without a block size the slots are float32; 0 is one scale per tensor. Parameters of fewer than
    4096 elements have float32 slots in any case.
    """
    hyperparameters = LAMB if rule == "lamb" else LION
    state = {}
    for number, name in enumerate(names):
        slots = {"state1": np.zeros(problem.SHAPES[name])}
        if rule == "lamb":
            slots["state2"] = slots["state1"]
        p = problem.params()[name]
        for t in range(problem.STEPS):
            decoded = cuda_steps.decode({"step": t, **slots}, p.shape)
            eight_bit = block_size is not None and p.size >= 4096
            step = _STEPS[rule, eight_bit]
            done = step(p, problem.gradient(name, t), decoded, block_size, hyperparameters)
            slots = _slot("1", done.m, SIGNED, block_size)
            if rule == "lamb":
                slots |= _slot("2", done.v, UNSIGNED, block_size)
            p = done.p
        if rule == "lamb":
            slots["unorm_vec"] = np.float32([np.linalg.norm(p)])
        state[number] = {"step": problem.STEPS, **slots}
    return {"state": state, "param_groups": [{"eps": 0.0, **hyperparameters, "params": [*state]}]}


SIGNED, UNSIGNED = oracles.bitsandbytes_map(True), oracles.bitsandbytes_map(False)
_STEPS = {
    ("lion", False): lambda p, g, slots, _, h: cuda_steps.lion32(p, g, slots, **h),
    ("lion", True): lambda p, g, slots, block_size, h: cuda_steps.lion8(
        p, g, slots, table=SIGNED, block_size=block_size, **h
    ),
    ("lamb", False): lambda p, g, slots, _, h: cuda_steps.lamb32(p, g, slots, **h),
    ("lamb", True): lambda p, g, slots, block_size, h: cuda_steps.lamb8(
        p, g, slots, tables=(SIGNED, UNSIGNED), block_size=block_size, **h
    ),
}


def _slot(slot, stored, table, block_size):
    if stored.codes is None:
        return {f"state{slot}": stored.value.astype(np.float32)}
    absmax = stored.absmax.astype(np.float32)
    scales = {f"absmax{slot}": absmax}
    if not block_size:  # after a step, `new_max` has what was `max` before
        scales = {f"max{slot}": absmax, f"new_max{slot}": absmax / 2}
    return {f"state{slot}": stored.codes, f"qmap{slot}": table, **scales}


def lion8bit_gpu_order():
    """As a GPU leaves it: a slot with the parameter's strides, filled by place in memory."""
    checkpoint = built("lion", ["transposed"], 256)
    slots = checkpoint["state"][0]
    codes = torch.from_numpy(slots["state1"])
    in_memory = torch.empty_like(tensor("transposed", slots["state1"]))  # keeps the strides
    in_memory.as_strided((codes.numel(),), (1,)).copy_(codes.ravel())
    checkpoint = arrays.as_tensors(checkpoint)
    slots = checkpoint["state"][0] | {"state1": in_memory}
    checkpoint["state"][0] = {"step": slots.pop("step"), arrays.QUANT_STATE: slots}
    return checkpoint


def lamb8bit_long_map():
    """0.36 to 0.41.0: a second map of 524 levels, too long, whose first 256 counted."""
    checkpoint = built("lamb", ["ragged"], 0)
    slots = checkpoint["state"][0]
    v = cuda_steps.decode(slots, problem.SHAPES["ragged"]).v
    slots["qmap2"] = long_map()
    short = slots["qmap2"][:256].astype(np.float64)
    codes = cuda_steps.nearest_codes(v / np.float64(slots["max2"][0]), short)
    slots["state2"] = codes.reshape(v.shape)
    return checkpoint


def long_map():
    """Each of seven decades has 2**(i+2) middles of equal parts of [0.1, 1], and two of halves."""
    levels = [0.0, 1.0]
    for i in range(7):
        for parts in (2 ** (i + 2), 2):
            edges = np.linspace(0.1, 1, parts + 1)
            levels.extend(10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2)
    return np.sort(np.float32(levels))


def lion8bit_percentile():
    """With `percentile_clipping=99`, which never shortens anything but remembers squared norms."""
    checkpoint = built("lion", ["ragged", "small"], 256)
    for number, name in enumerate(["ragged", "small"]):
        squared = [np.sum(np.square(problem.gradient(name, t))) for t in range(problem.STEPS)]
        history = np.full(100, squared[0], np.float32)
        history[2 : problem.STEPS + 1] = squared[
            1:
        ]  # that of step t, from 1, in slot t; the first in all
        checkpoint["state"][number]["gnorm_vec"] = history
    return checkpoint


BUILT = {
    "lion8bit_gpu_order": (["transposed"], lion8bit_gpu_order),
    "lion8bit_flat": (["ragged", "small"], lambda: built("lion", ["ragged", "small"], 256)),
    "lion8bit_blocks_of_2048": (
        ["matrix", "ragged"],
        lambda: built("lion", ["matrix", "ragged"], 2048),
    ),
    "lion8bit_percentile": (["ragged", "small"], lion8bit_percentile),
    "lamb8bit_tensorwise": (["ragged", "small"], lambda: built("lamb", ["ragged", "small"], 0)),
    "lamb8bit_long_map": (["ragged"], lamb8bit_long_map),
    "lamb32bit_flat": (["small", "narrow"], lambda: built("lamb", ["small", "narrow"])),
}
"""The parameters of each, and how it is made."""


def main(folder=CHECKPOINTS):
    """Writes all checkpoints and the table of their parameters."""
    folder = pathlib.Path(folder)
    folder.mkdir(exist_ok=True)
    table = {}
    for name, (kind, hyperparameters, groups, *frozen) in SAVED.items():
        checkpoint = saved(kind, hyperparameters, groups, *frozen)
        torch.save(checkpoint, folder / f"{name}.pt")
        files.write(folder / f"{name}.safetensors", checkpoint, order="logical")  # CPU's
        table[name] = [name for group in groups for name in group]
    for name, (names, build) in BUILT.items():
        checkpoint = build()
        files.write(folder / f"{name}.safetensors", checkpoint)
        if name == "lion8bit_gpu_order":  # strides are what it is about
            torch.save(checkpoint, folder / f"{name}.pt")
        table[name] = names
    (folder / "checkpoints.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
