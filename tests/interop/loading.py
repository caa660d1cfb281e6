"""The committed checkpoints, and optimizers that go on from them."""

import copy
import json
import pathlib

import jax.numpy as jnp
import numpy as np

from optax_lamblion import (
    StateOptions,
    from_bitsandbytes,
    lamb8bit,
    lamb32bit,
    lion8bit,
    lion32bit,
)
from optax_lamblion._checkpoints.bitsandbytes import files
from tests import oracles
from tests.interop import problem

FOLDER = pathlib.Path(__file__).parent / "checkpoints"
NAMES = json.loads((FOLDER / "checkpoints.json").read_text(encoding="utf-8"))
"""The parameters of every checkpoint, in their order."""


def read(name):
    """A checkpoint, as dicts of NumPy arrays that a test may change."""
    return copy.deepcopy(files.read(FOLDER / f"{name}.safetensors"))


def slots(checkpoint, number=0):
    """The dict with the slots of a parameter, wherever this version has it."""
    entry = checkpoint["state"][number]
    return entry.get("__bnb_optimizer_quant_state__", entry)


def our_codes(codes, signed):
    """The codes that have the same values here: those of bitsandbytes' map rise with its values."""
    return oracles.written("dynamic", signed)[codes]


def hyperparameters(checkpoint, number=0):
    """Settings of the group of a parameter, as arguments of our factories."""
    (group,) = [x for x in checkpoint["param_groups"] if number in x["params"]]
    b1, b2 = group["betas"]
    given = dict(learning_rate=group["lr"], b1=b1, b2=b2, weight_decay=group["weight_decay"])
    return given | ({"eps": group["eps"]} if group["eps"] else {})


def block_size(name):
    """Elements per scale in a checkpoint; None for one scale per tensor."""
    if "2048" in name:
        return 2048
    return None if "tensorwise" in name or "long_map" in name else 256


def optimizer(name, checkpoint=None, **more):
    """The optimizer whose state is stored as the checkpoint is."""
    factory = {
        ("lion", True): lion8bit,
        ("lion", False): lion32bit,
        ("lamb", True): lamb8bit,
        ("lamb", False): lamb32bit,
    }["lamb" if "lamb" in name else "lion", "8bit" in name]
    given = {} if checkpoint is None else hyperparameters(checkpoint)
    if "8bit" in name:
        block = block_size(name)
        given["options"] = StateOptions(codec="dynamic", **({"block_size": block} if block else {}))
        given["block_wise"] = block is not None
    if "percentile" in name:
        given["percentile_clipping"] = 5
    return factory(**given | more)


def contents(checkpoint, names):
    """For every parameter its number and its slots, by its name."""
    return {names[i]: (i, slots(checkpoint, i)) for i in checkpoint["state"]}


def same_bits(a, b):
    """Whether two arrays hold the same bytes."""
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def imported(name, tx=None, checkpoint=None, dtype=jnp.float32, **arguments):
    """Parameters of a checkpoint and the state that it becomes."""
    names = NAMES[name]
    p = {x: jnp.asarray(problem.params()[x], dtype) for x in names}
    source = FOLDER / f"{name}.safetensors" if checkpoint is None else checkpoint
    arguments = {"names": names, "allow_missing": name == "lion32bit"} | arguments
    tx = optimizer(name) if tx is None else tx
    return p, from_bitsandbytes(source, p, tx, **arguments)
