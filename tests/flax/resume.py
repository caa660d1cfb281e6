"""Trains, saves, and trains on: a process of `test_resuming`.

`python -m tests.flax.resume FOLDER save` makes three steps, saves, and makes three more.
With `restore` in place of `save` it makes the last three from what was saved. Either way it leaves
everything that it ended with in FOLDER. With more than one device, all is on a mesh of them.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx, serialization
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from optax_lamblion import (
    StateOptions,
    clip_by_global_norm,
    lamb8bit,
    paged_lion8bit,
    state_sharding,
)
from optax_lamblion.flax import Optimizer, TrainState
from tests.flax import problem

OPTIONS = StateOptions(block_size=128, page_min_size=1000)
OPTIMIZERS = {"resident": lamb8bit, "paged": paged_lion8bit}
LIBRARIES = ("orbax", "flax")
STEPS = 3


def transformation(where):
    """Clipping, and a schedule that goes by the count of the state."""
    schedule = optax.cosine_decay_schedule(1e-2, 2 * STEPS)
    return optax.chain(clip_by_global_norm(1.0), OPTIMIZERS[where](schedule, options=OPTIONS))


class Dropped(nnx.Module):
    """A model that draws random numbers in every step."""

    def __init__(self, partition):
        self.model = problem.Model(partition)
        self.dropout = nnx.Dropout(0.3, rngs=nnx.Rngs(3))

    def __call__(self, tokens):
        return self.dropout(self.model(tokens))


class WithNNX:
    """A run of NNX, on the mesh of the context if there is one."""

    def __init__(self, where, mesh):
        self.model = Dropped(nnx.with_partitioning if mesh else lambda init, axes: init)
        self.optimizer = Optimizer(self.model, transformation(where), wrt=nnx.Param)
        self._step = nnx.jit(problem.train, donate_argnums=(0, 1))

    def step(self):
        """Makes a step and returns the loss before it."""
        return self._step(self.model, self.optimizer)

    def checkpoint(self):
        """What is saved."""
        return self.optimizer.checkpoint(self.model)

    def restore(self, saved):
        """Goes back to what was saved."""
        self.optimizer.restore(self.model, saved)


class WithLinen:
    """A run of Linen."""

    def __init__(self, where, mesh):
        tx, there = transformation(where), None

        def create():
            return problem.train_state(TrainState, tx)

        if mesh:
            shapes, everywhere = jax.eval_shape(create), NamedSharding(mesh, P())
            columns = jax.tree.map(
                lambda p: NamedSharding(mesh, P("x", None) if p.ndim > 1 else P()), shapes.params
            )
            there = shapes.replace(
                step=everywhere,
                params=columns,
                opt_state=state_sharding(tx, shapes.params, columns),
            )
        self.state = jax.jit(create, out_shardings=there)() if mesh else create()
        out = (there, everywhere) if mesh else None
        self._step = jax.jit(problem.linen_train, donate_argnums=0, out_shardings=out)

    def step(self):
        """Makes a step and returns the loss before it."""
        self.state, loss = self._step(self.state)
        return loss

    def checkpoint(self):
        """What is saved."""
        return self.state.checkpoint()

    def restore(self, saved):
        """Goes back to what was saved."""
        self.state = self.state.restore(saved)


APIS = {"nnx": WithNNX, "linen": WithLinen}


def save(run, library, path):
    """Saves what a run is at."""
    if library == "flax":
        path.write_bytes(serialization.to_bytes(run.checkpoint()))
        return
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, run.checkpoint())


def restore(run, library, path):
    """Goes back to it."""
    if library == "flax":
        run.restore(serialization.msgpack_restore(path.read_bytes()))
        return
    with ocp.StandardCheckpointer() as checkpointer:
        run.restore(checkpointer.restore(path, run.checkpoint()))


def kinds(run):
    """In how many shards and in which memory every array of a checkpoint is."""
    return [
        f"{len(x.addressable_shards)} {x.sharding.memory_kind}"
        for x in jax.tree.leaves(run.checkpoint())
        if x.ndim
    ]


def main(folder, what):
    """All runs, each with what it ended with in a file."""
    mesh = None
    if jax.device_count() > 1:
        mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(AxisType.Auto,))
        jax.set_mesh(mesh)
    for api, kind in APIS.items():
        for where in OPTIMIZERS:
            if what == "save":
                run = kind(where, mesh)
                for _ in range(STEPS):
                    run.step()
                for library in LIBRARIES:
                    save(run, library, folder / f"{api}-{where}-{library}")
                finish(run, folder / f"{api}-{where}.npz")
                continue
            for library in LIBRARIES:
                run = kind(where, mesh)
                restore(run, library, folder / f"{api}-{where}-{library}")
                finish(run, folder / f"{api}-{where}-{library}.npz")


def finish(run, path):
    """The last steps, and all that there is after them."""
    losses = [float(run.step()) for _ in range(STEPS)]
    arrays = [np.asarray(jnp.asarray(x)) for x in jax.tree.leaves(run.checkpoint())]
    np.savez(path, *arrays, losses=losses, kinds=kinds(run))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).absolute(), sys.argv[2])
