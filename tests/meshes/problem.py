"""A model divided over meshes of eight devices, its gradients, and steps with them.

It has what a mesh has to do with: matrices over one and over two axes, a vector over all of them, a
stack of layers, blocks that straddle rows, a leaf on every device, and one that is too small for
8 bits.
"""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from optax_lamblion import StateOptions, apply_fused, state_sharding

P = PartitionSpec
SHAPES = {
    "matrix": (64, 2048),
    "rows": (16, 512),
    "straddling": (64, 48 * 8),
    "vector": (4096,),
    "small": (3, 5),
    "stack": (4, 32, 512),
    "everywhere": (8, 1024),
}
MESHES = {"1x8": (1, 8), "4x2": (4, 2), "2x2x2": (2, 2, 2)}
NAMES = {2: ("fsdp", "tp"), 3: ("data", "fsdp", "tp")}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
SPECS = {
    "matrix": P("fsdp", "tp"),
    "rows": P("fsdp", None),
    "straddling": P("fsdp", None),
    "vector": P(("fsdp", "tp")),
    "small": P(),
    "stack": P(None, "fsdp", "tp"),
    "everywhere": P(),
}
COLLECTIVE = r"all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"
PAGED = StateOptions(page_min_size=1000)


def make_mesh(shape="4x2", kind="auto"):
    """A mesh of the eight devices of the CPU."""
    sizes = MESHES[shape]
    devices = np.array(jax.devices("cpu")).reshape(sizes)
    names = NAMES[len(sizes)]
    return Mesh(devices, names, axis_types=(KINDS[kind],) * len(sizes))


def specs(mesh):
    """The partition specs of the model: what this mesh can divide in whole blocks of 256."""
    out = dict(SPECS)
    if mesh.shape["tp"] == 8:
        out["stack"] = P(None, "tp", None)
        out["rows"] = P("tp", None)
        out["straddling"] = P("tp", None)
    return out


def shardings(mesh):
    """`NamedSharding` of every parameter."""
    return {name: NamedSharding(mesh, spec) for name, spec in specs(mesh).items()}


def params(dtype=jnp.float32, seed=0):
    """Parameters, on the first device."""
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.standard_normal(s), dtype) for k, s in SHAPES.items()}


def gradients(count, dtype=jnp.float32):
    """The gradients of as many steps."""
    return [jax.tree.map(lambda x: x / 10, params(dtype, seed=i + 1)) for i in range(count)]


def put(tree, mesh):
    """A tree like the model, on the mesh."""
    return jax.device_put(tree, shardings(mesh)) if mesh is not None else tree


class Run:
    """Some steps of an optimizer, on a mesh or on one device.

    Attributes:
      params: The parameters after the last step.
      state: The state after the last step.
      text: The compiled program of a step.
    """

    def __init__(self, tx, mesh=None, *, fused=True, dtype=jnp.float32, steps=3, over=None):
        p = put(params(dtype), mesh)
        grads = [put(g, mesh) for g in gradients(steps, dtype)]

        def step(p, g, state):
            if fused:
                return apply_fused(tx, p, g, state)
            updates, state = tx.update(g, state, p)
            return optax.apply_updates(p, updates), state

        there = None
        if mesh is None:
            state = tx.init(p)
        else:
            for_state = state_sharding(tx, p, over=over)
            state = jax.jit(tx.init, out_shardings=for_state)(p)
            there = (shardings(mesh), for_state)
        jitted = jax.jit(step, donate_argnums=(0, 2), out_shardings=there)
        compiled = jitted.lower(p, grads[0], state).compile()
        for g in grads:
            p, state = compiled(p, g, state)
        self.params, self.state, self.text = p, state, compiled.as_text()

    @property
    def collectives(self):
        """How many of each the program has."""
        return dict(collections.Counter(re.findall(rf" ({COLLECTIVE})(?:-start)?\(", self.text)))

    def copies(self, at_least):
        """Copies of arrays of so many elements or more in the program."""
        found = re.findall(r"= \w+\[([\d,]*)\]\S* copy\(", self.text)
        sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in found]
        return [n for n in sizes if n >= at_least]


def differing(a, b):
    """Paths of the leaves of two trees that are not equal bit for bit."""
    rows = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, x), y in rows
        if np.asarray(x).tobytes() != np.asarray(y).tobytes()
    ]
