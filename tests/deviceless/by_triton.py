"""Steps by the kernels of Triton as cases: on one GPU, paged, and on eight of them."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optax_lamblion
import pallas_kernels
from optax_lamblion import StateOptions, apply_fused
from pallas_kernels.arithmetic.blocks import absmax_shape
from tests.deviceless import cases, clipped, kernels, meshes, paged, targets
from tests.deviceless.cases import Case, case
from tests.deviceless.targets import TARGETS

NAMES = "lion8bit", "lamb8bit", "adamw8bit"
SHAPES = {"whole": kernels.SHAPE, "ragged": kernels.RAGGED}
FORMS = {"apply_fused": True, "update": False}
STACK = (8, 1024, 1024)
# What is around a kernel is as with Mosaic's, of which there are more cases.
PAGED = [
    ("paged_lion8bit", "2 ragged leaves", "apply_fused"),
    ("paged_lamb8bit", "3 large leaves", "apply_fused"),
    ("paged_lion8bit", "16 leaves", "update"),
]
ON_MESHES = [
    ("lion8bit", "auto", "apply_fused"),
    ("lamb8bit", "explicit", "apply_fused"),
    ("paged_lamb8bit", "auto", "apply_fused"),
    ("lamb8bit", "auto", "update"),
]
STEPS = {("whole", "update"): NAMES, ("ragged", "apply_fused"): NAMES}
"""Of which optimizers a leaf of a shape is stepped in a form."""
COUNTED, CLIPPED = ("lion8bit", "lamb8bit"), ("lamb8bit",)
BY_TRITON = dict(implementation="triton")


def name_of(*words):
    """The name of a case."""
    return "/".join(("triton", *words))


def _add(words, make, *args, targets=("h200",), **kwargs):
    case(name_of(*words), targets=targets)(functools.partial(make, *args, **kwargs))


def optimizer(name, clip=None, **kwargs):
    """The optimizer of that name by Triton, with further options of the state."""
    options = StateOptions(**BY_TRITON, **kwargs)
    tx = getattr(optax_lamblion, name)(1e-3, weight_decay=0.1, options=options)
    return tx if clip is None else optax.chain(clip, tx)


def params(shape=kernels.SHAPE, leaves=1):
    """So many equal leaves."""
    return {str(i): jax.ShapeDtypeStruct(shape, jnp.bfloat16) for i in range(leaves)}


def _step(name, shape, fused):
    return cases.step(optimizer(name), params(SHAPES[shape]), fused)


for (_shape, _form), _names in STEPS.items():
    for _name in _names:
        # What a GPU is called decides for which one Triton compiles.
        _everywhere = _form == "apply_fused" and _name != "adamw8bit"
        _targets = tuple(TARGETS) if _everywhere else ("h200",)
        _add((_name, _shape, _form), _step, _name, _shape, FORMS[_form], targets=_targets)


def _several(name, leaves=8, **kwargs):
    return cases.step(optimizer(name, **kwargs), params(leaves=leaves), fused=True)


def _stacked():
    tx = optimizer("lamb8bit", stacked=lambda path: True)
    return cases.step(tx, params(STACK), fused=True)


def _clipped(name):
    tx = optimizer(name, optax_lamblion.clip_by_global_norm(1.0))
    return cases.step(tx, params(leaves=clipped.LEAVES), fused=True)


for _name in NAMES:
    _add((_name, "8 leaves"), _several, _name)
for _name in COUNTED:
    _add((_name, "counted"), _several, _name, leaves=1, count_skipped=True)
for _name in CLIPPED:
    _add((_name, "clipped"), _clipped, _name)
_add(("lamb8bit", "stacked"), _stacked)
for _name, _leaves, _form in PAGED:
    _add((_name, _leaves, _form), paged.step, _name, _leaves, FORMS[_form], **BY_TRITON)


def _on_mesh(name, kind, fused, **kwargs):
    return meshes.step(meshes.optimizer(name, **BY_TRITON, **kwargs), kind, fused)


for _name, _kind, _form in ON_MESHES:
    _add((_name, f"8 {_kind}", _form), _on_mesh, _name, _kind, FORMS[_form])
_stacks = dict(stacked=lambda path: path == "stack")
_add(("lamb8bit", "8 explicit", "stacked"), _on_mesh, "lamb8bit", "explicit", True, **_stacks)


def _eight(target):
    return targets.make_mesh(target, meshes.DEVICES)


def _in_shard_map(name):
    """Every device steps its rows, in a `jax.shard_map` of the user."""
    tx, p = optimizer(name), params()
    given = p, p, jax.eval_shape(tx.init, p)
    specs = jax.tree.map(lambda x: P("d") if x.ndim else P(), given)
    mesh = _eight(TARGETS["h200"]).abstract_mesh  # as in `meshes.place`

    def there(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    def step(p, g, state):
        return apply_fused(tx, p, g, state)

    run = jax.shard_map(step, in_specs=specs, out_specs=(specs[0], specs[2]), check_vma=False)
    return Case(run, jax.tree.map(there, given, specs), (0, 2), _eight)


_add(("lion8bit", "shard_map"), _in_shard_map, "lion8bit")


def _quantize():
    x = jax.ShapeDtypeStruct(kernels.SHAPE, jnp.bfloat16)
    return Case(functools.partial(pallas_kernels.quantize, **BY_TRITON), (x,))


def _dequantize():
    codes = jax.ShapeDtypeStruct(kernels.SHAPE, jnp.uint8)
    absmax = jax.ShapeDtypeStruct(absmax_shape(kernels.SHAPE, 256), jnp.float32)
    function = functools.partial(pallas_kernels.dequantize, dtype=jnp.bfloat16, **BY_TRITON)
    return Case(function, (codes, absmax))


_add(("quantize",), _quantize)
_add(("dequantize",), _dequantize)
