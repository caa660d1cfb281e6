"""Steps for models that are divided over many GPUs, compiled without one: what each device does.

The mesh has the axes `fsdp` and `tp`; `tp` is 8 where there is more than one node. A matrix is
divided by `fsdp` on its first axis and by `tp` on its last, where shards keep blocks whole, and
else by both on its first. With `tp` of 8 that is so for Llama's keys and values: of 1024 columns a
shard would have 128, half a block. A vector is on every device. Gradients are divided as parameters
are, and a step donates parameters and state.
"""

import collections
import dataclasses
import math
import pathlib
import re
import time

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optax_lamblion
from optax_lamblion import StateOptions, apply_fused, state_sharding
from optax_lamblion.demo import shapes
from tests.deviceless import compiling, mosaic, targets
from tests.deviceless.dump import LOWERED

TARGET = targets.TARGETS["h200"]
NODE = 8  # GPUs that are near enough to each other for `tp`
BLOCK_SIZE = StateOptions().block_size


@dataclasses.dataclass(frozen=True)
class Model:
    """Llama 3 of some size, as what differs from the one of 8B."""

    name: str
    layers: int
    wider: dict[int, int]
    """For lengths of axes, those that they have here."""

    def shapes(self, layers=None):
        """`{name: shape}`; with `layers`, of the first ones and of what is around all of them."""
        model = shapes.MODELS["llama-8b"]()
        # The vocabulary first, as in the embedding: no eighth of it consists of whole blocks.
        model["head"] = model["embed"]
        first = {name[6:]: model[name] for name in model if name.startswith("layer0")}
        found = {name: x for name, x in model.items() if not name.startswith("layer")}
        for i in range(self.layers if layers is None else layers):
            found |= {f"layer{i}{name}": x for name, x in first.items()}
        return {name: tuple(self.wider.get(n, n) for n in x) for name, x in found.items()}


MODELS = {
    "8b": Model("Llama 3 8B", layers=32, wider={}),
    "70b": Model("Llama 3 70B", layers=80, wider={4096: 8192, 14336: 28672}),
}


def make_mesh(devices, kind=AxisType.Explicit):
    """A mesh of so many GPUs; a whole row along `tp` is in one node."""
    tensor_parallel = NODE if devices > NODE else 1
    flat = targets.make_mesh(TARGET, devices).devices
    return Mesh(flat.reshape(-1, tensor_parallel), ("fsdp", "tp"), axis_types=(kind,) * 2)


def spec_of(shape, tensor_parallel, block_size):
    """The partition spec of a parameter."""
    if len(shape) < 2:
        return PartitionSpec()
    if shape[-1] % (tensor_parallel * block_size):
        return PartitionSpec(("fsdp", "tp"), None)
    return PartitionSpec("fsdp", "tp")


def cost(mesh, model, optimizer, dump, layers=None, block_size=BLOCK_SIZE):
    """What one step of `apply_fused` costs one device, as plain values.

    Args:
      mesh: From `make_mesh`.
      model: A `Model`.
      optimizer: The name of a factory.
      dump: The folder that Mosaic writes to. It is left empty.
      layers: Compile the first ones only.
      block_size: Elements that share a scale.

    Returns:
      A dict of

      - `parameters`: elements on this device, and `parameter_bytes`, `state_bytes` of it.
      - `arguments`, `alias`, `temp`: bytes; see `compiling.facts`.
      - `moved`: bytes of main memory that kernels read and write, without `unread`: the gradient
        that `lamb_apply` is given, and reads only for tiles where it is not finite.
        Of a fusion that takes a slice of what it computes, all that it computes from counts as
        read.
      - `ideal`: bytes that no order of kernels could do without. See `ideal`.
      - `launches`: how many kernels there are, of XLA's and ours.
      - `kernels`: `{name: {elements: how many}}` of our own.
      - `collectives`: `{kind: [how many, bytes]}`.
      - `largest_copy`: bytes that are written by a kernel which only moves elements.
      - `seconds`: that it took to compile.
    """
    start = time.monotonic()
    options = StateOptions(block_size=block_size)
    tx = getattr(optax_lamblion, optimizer)(1e-3, weight_decay=0.1, options=options)
    wanted = shapes.as_structs(model.shapes(layers), jnp.bfloat16)

    def sharding_of(p):
        spec = spec_of(p.shape, mesh.shape["tp"], block_size)
        return NamedSharding(mesh.abstract_mesh, spec)

    for_params = jax.tree.map(sharding_of, wanted)
    for_state = state_sharding(tx, wanted, for_params)
    params = _divided(wanted, for_params)
    state = _divided(jax.eval_shape(tx.init, wanted), for_state)

    def step(params, grads, state):
        return apply_fused(tx, params, grads, state)

    # With Explicit axes types say it.
    results = (for_params, for_state) if AxisType.Auto in mesh.axis_types else None
    executable = compiling.compile_for(
        mesh, step, params, params, state, donate=(0, 2), out_shardings=results
    )
    facts = compiling.facts(executable, _lowered(dump))
    kernels, unread = _kernels(facts)
    return {
        "parameters": sum(x.size for x in _shards(params)),
        "parameter_bytes": _bytes(params),
        "state_bytes": _bytes(state),
        **{key: facts[key] for key in ("arguments", "alias", "temp")},
        "moved": compiling.bytes_moved(facts) - unread,
        "unread": unread,
        "ideal": ideal(_bytes(params), _bytes(state), two_passes="lamb" in optimizer),
        "launches": len(facts["launches"]),
        "kernels": {name: dict(sizes) for name, sizes in kernels.items()},
        "collectives": _collectives(facts),
        "largest_copy": max((x["writes"] for x in compiling.copies(facts)), default=0),
        "seconds": round(time.monotonic() - start, 1),
    }


def ideal(params, state, two_passes):
    """Bytes to move for so many bytes of parameters and state; gradients have those of parameters.

    Gradients are read, parameters and state read and written. LAMB may change no parameter before
    it knows two norms of it, so that parameters and new state are read once more.
    """
    return 3 * params + 2 * state + (params + state if two_passes else 0)


def _divided(tree, shardings):
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def _shards(tree):
    """What one device has of a tree."""
    return [
        jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype)
        for x in jax.tree.leaves(tree)
    ]


def _bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in _shards(tree))


def _lowered(dump):
    """`mosaic.Kernel`s without machine code.

    Kernels for shards in different places may have a name and buffers in common, and `dump.Dump`
    could not tell which code is whose. What they read and write is the same.
    """
    texts = set()
    for path in pathlib.Path(dump).iterdir():
        if path.name.endswith(LOWERED):
            texts.add(path.read_text())
        path.unlink()
    return [mosaic.kernel(text, {}) for text in sorted(texts)]


def _kernels(facts):
    """`({name: {elements: how many}}, bytes of gradients that hardly ever are read)`."""
    found, unread = collections.defaultdict(collections.Counter), 0
    for x in facts["launches"]:
        if x["kind"] == "mosaic":
            found[x["name"]][max(map(_elements, x["results"]))] += 1
            if x["name"] == "lamb_apply":
                unread += x["writes"]  # parameters, which gradients are like
    return found, unread


def _elements(type_):
    """How many elements `f32[16,256]` has."""
    return math.prod(map(int, re.findall(r"\d+", type_[type_.index("[") :])))


def _collectives(facts):
    found = {kind: [count, 0] for kind, count in facts["collectives"].items()}
    for x in facts["launches"]:
        if x["kind"] == "collective":
            found[x["name"]][1] += x["writes"]
    return found
