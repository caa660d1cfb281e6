"""Steps on eight GPUs as cases: on meshes with Auto and with Explicit axes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_lamblion
from optax_lamblion import StateOptions, apply_fused, state_sharding
from tests.deviceless import targets
from tests.deviceless.cases import Case, case

SHAPES = {
    "matrix": (2048, 4096),
    "stack": (4, 1024, 1024),
    "straddling": (2048, 48 * 8),
    "vector": (4096,),
    "small": (3, 5),
    "everywhere": (64, 1024),
}
SPECS = {
    "matrix": P("fsdp", "tp"),
    "stack": P(None, "fsdp", "tp"),
    "straddling": P("fsdp", None),
    "vector": P(("fsdp", "tp")),
    "small": P(),
    "everywhere": P(),
}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
NAMES = (
    "lion8bit",
    "lamb8bit",
    "lion32bit",
    "lamb32bit",
    "paged_lion8bit",
    "paged_lamb8bit",
)
FORMS = {"apply_fused": True, "update": False}
DEVICES = 8
IN_KERNELS = ("matrix", "stack", "straddling", "everywhere")
"""Leaves of which a shard has a tile or more."""


def make_mesh(kind, target):
    """Eight GPUs, four by two."""
    devices = targets.make_mesh(target, DEVICES).devices.reshape(4, 2)
    return Mesh(devices, ("fsdp", "tp"), axis_types=(KINDS[kind],) * 2)


def optimizer(name, **kwargs):
    """The optimizer, with pages for which shards of the larger leaves have to be cut."""
    options = StateOptions(page_bytes=2**20, **kwargs)
    return getattr(optax_lamblion, name)(1e-3, weight_decay=0.1, options=options)


def shard_sizes(names=tuple(SHAPES)):
    """Elements of the shard that a device has, by leaf."""
    mesh = AbstractMesh((4, 2), ("fsdp", "tp"))
    sizes = {}
    for name in names:
        shard = NamedSharding(mesh, SPECS[name]).shard_shape(SHAPES[name])
        sizes[name] = functools.reduce(lambda a, b: a * b, shard, 1)
    return sizes


def place(tx, kind):
    """Parameters and state on the mesh, each with its shardings: `((p, its), (state, its))`."""
    # That of the GPUs, and not any of these sizes: types name the kind of GPU as well.
    mesh = make_mesh(kind, targets.TARGETS["h200"]).abstract_mesh
    by_name = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    p = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in SHAPES.items()}
    for_state = state_sharding(tx, p, by_name)

    def there(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.tree.map(there, jax.eval_shape(tx.init, p), for_state)
    return (jax.tree.map(there, p, by_name), by_name), (state, for_state)


def init(tx, kind):
    """A `Case`: a fresh state."""
    (p, _), (_, for_state) = place(tx, kind)
    return Case(tx.init, (p,), (), functools.partial(make_mesh, kind), for_state)


def step(tx, kind, fused):
    """A `Case`: one step that donates parameters and state."""
    (p, by_name), (state, for_state) = place(tx, kind)

    def apply(p, g, state):
        if fused:
            return apply_fused(tx, p, g, state)
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    out = (by_name, for_state) if kind == "auto" else None
    return Case(apply, (p, p, state), (0, 2), functools.partial(make_mesh, kind), out)


CASES = [
    (name, kind, form)
    for name, kind, form in itertools.product(NAMES, KINDS, FORMS)
    if form == "apply_fused" or (kind == "auto" and name in ("lion8bit", "lamb8bit"))
]
for _name, _kind, _form in CASES:
    _fused = FORMS[_form]
    case(f"{_name}/8 {_kind}/{_form}", targets=("h200",))(
        lambda name=_name, kind=_kind, fused=_fused: step(optimizer(name), kind, fused)
    )
for _kind in KINDS:
    case(f"paged_lion8bit/8 {_kind}/init", targets=("h200",))(
        lambda kind=_kind: init(optimizer("paged_lion8bit"), kind)
    )
    case(f"lion8bit/8 {_kind}/by name", targets=("h200",))(
        lambda kind=_kind: step(optimizer("lion8bit", implementation="mosaic"), kind, True)
    )
    case(f"lamb8bit/8 {_kind}/stacked", targets=("h200",))(
        lambda kind=_kind: step(
            optimizer("lamb8bit", stacked=lambda path: path == "stack"), kind, True
        )
    )
