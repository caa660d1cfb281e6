"""Whole models as cases: one step of an optimizer for all of their leaves, in bfloat16.

They take minutes to compile, so they are meant for no target: `report.py` asks for them by name. A
model of equal layers is also a case with its first layer, and with its first two.
"""

import functools
import math
import re

import jax.numpy as jnp

from optax_lamblion.demo import shapes
from tests.deviceless.cases import MODES, case, ours

OPTIMIZERS = ("lion8bit", "lamb8bit", "adamw8bit")


def case_name(model, layers, optimizer, mode):
    """The name of a case. `layers` is None for the whole model."""
    return f"{model}{'' if layers is None else f'[:{layers}]'}/{optimizer}/{mode}"


def layers(model):
    """How many equal layers a model has; None if its layers differ."""
    found = {}
    for name, shape in shapes.MODELS[model]().items():
        if layer := _layer(name):
            number, inside = layer
            found.setdefault(number, []).append((inside, shape))
    return len(found) if all(x == found[0] for x in found.values()) else None


def parameters(model):
    """How many parameters a model has."""
    return sum(map(math.prod, shapes.MODELS[model]().values()))


def leaves(model):
    """How many tensors a model has."""
    return len(shapes.MODELS[model]())


def _build(model, first, optimizer, fused, implementation):
    params = shapes.MODELS[model]()
    if first is not None:
        number = {name: layer[0] for name in params if (layer := _layer(name))}
        params = {name: x for name, x in params.items() if number.get(name, 0) < first}
    return ours(optimizer, shapes.as_structs(params, jnp.bfloat16), fused, implementation)


def _layer(name):
    """`(number, name inside)` of a tensor that belongs to a layer."""
    found = re.match(r"[a-z]+(\d+)/(.*)", name)
    return found and (int(found[1]), found[2])


for _model in shapes.MODELS:
    for _first in (None, 1, 2) if layers(_model) else (None,):
        for _optimizer in OPTIMIZERS:
            for _mode, _fused, _implementation in MODES:
                case(case_name(_model, _first, _optimizer, _mode), targets=())(
                    functools.partial(_build, _model, _first, _optimizer, _fused, _implementation)
                )
