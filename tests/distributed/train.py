"""A small training run on four devices, by one of the processes that share them.

python -m tests.distributed.train --process I --processes N --port P --devices-per-process D
    --optimizer lion8bit --steps 12 --out FILE [--folder CHECKPOINTS] [--die-at STEP] [--over AXIS]

However many processes there are, the mesh is the same, and so is the program. A run goes on from
the latest checkpoint in its folder, whoever saved it. Process 0 appends a line of JSON to the file
for every step: its number, its loss, and the bytes of state that a device has then.
"""

import argparse
import functools
import json
import os
import pathlib
import signal
import traceback
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_lamblion
from optax_lamblion import StateOptions, apply_fused, state_sharding

PARAMS = {
    "inner": ((128, 512), P("fsdp", None)),  # the scales have the parameter's rank
    "middle": ((512, 96), P("fsdp", None)),  # flat scales
    "outer": ((96, 512), P(None, "fsdp")),  # rows are divided, between blocks
    "bias": ((96,), P()),  # too small for 8 bits, and everywhere
}
"""Shapes, and the mesh axes that divide them so that shards have whole blocks of 256 elements."""
ROWS, WIDTH = 32, 128
"""Of a batch."""
SAVE_EVERY = 3


def main():
    args = arguments()
    join(args)
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    everywhere = NamedSharding(mesh, P())
    of_params = {name: NamedSharding(mesh, spec) for name, (_, spec) in PARAMS.items()}

    factory = getattr(optax_lamblion, args.optimizer)
    tx = factory(3e-3, weight_decay=1e-2, options=StateOptions(page_min_size=1000))
    params = first_params(of_params)
    of_state = state_sharding(tx, params, over=args.over)

    @functools.partial(
        jax.jit, donate_argnums=(0, 1), out_shardings=(of_params, of_state, everywhere)
    )
    def step(params, state, inputs, outputs):
        def loss_of(params):
            # XLA would rather divide the products than gather the parameters, as FSDP does.
            return loss(jax.lax.with_sharding_constraint(params, everywhere), inputs, outputs)

        value, grads = jax.value_and_grad(loss_of)(params)
        return *apply_fused(tx, params, grads, state), value

    state = jax.jit(tx.init, out_shardings=of_state)(params)
    with open(args.out, "a") as out, Checkpoints(args.folder, of_params, of_state) as checkpoints:
        first, params, state = checkpoints.latest(params, state)
        for number in range(first, args.steps):
            if number == args.die_at and args.process == min(1, args.processes - 1):
                os.kill(os.getpid(), signal.SIGKILL)
            params, state, value = step(params, state, *batch(mesh, number))
            if args.process == 0:
                record = {"step": number, "loss": float(value), **held(state)}
                print(json.dumps(record), file=out, flush=True)
            checkpoints.save(number + 1, params, state)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("process", "processes", "port", "devices-per-process", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--optimizer", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument(
        "--folder", type=pathlib.Path, help="of checkpoints; without it none is saved"
    )
    parser.add_argument(
        "--die-at", type=int, help="in this step process 1, or the only one, ends itself"
    )
    parser.add_argument("--over", help="the mesh axis over which the state is divided on top")
    return parser.parse_args()


def join(args):
    """Makes this process one of several."""
    jax.config.update("jax_num_cpu_devices", args.devices_per_process)
    if args.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"127.0.0.1:{args.port}", args.processes, args.process, initialization_timeout=60
        )
    # The library's, that blocks are cut, and JAX's, that a donated array was not overwritten.
    warnings.simplefilter("error", UserWarning)


def first_params(of_params):
    """Where optimization starts, without a program that would have to be compiled."""

    def make(number, name):
        shape, _ = PARAMS[name]
        whole = np.random.default_rng(number).normal(size=shape) / shape[0] ** 0.5
        whole = whole.astype(np.float32)
        return jax.make_array_from_callback(shape, of_params[name], lambda index: whole[index])

    return {name: make(number, name) for number, name in enumerate(PARAMS)}


def loss(params, x, y):
    """Mean squared error of a network of three layers."""
    hidden = jnp.tanh(jnp.tanh(x @ params["inner"]) @ params["middle"] + params["bias"][None])
    return jnp.mean((hidden @ params["outer"] - y) ** 2)


def batch(mesh, number):
    """Inputs and outputs of one step. Each process makes the rows that its devices get."""
    sharding = NamedSharding(mesh, P("data", None))

    def inputs(index):
        rows = range(ROWS)[index[0]]
        x = [np.random.default_rng([number, row]).normal(size=WIDTH) for row in rows]
        return np.asarray(x, np.float32)

    def outputs(index):
        return np.sin(np.tile(inputs(index), 4))

    return (
        jax.make_array_from_callback((ROWS, WIDTH), sharding, inputs),
        jax.make_array_from_callback((ROWS, 4 * WIDTH), sharding, outputs),
    )


def held(state):
    """Bytes of the state that belong to one device, in its own memory and in the host's."""
    held = {"device": 0, "host": 0}
    for x in jax.tree.leaves(state):
        memory = "host" if x.sharding.memory_kind == "pinned_host" else "device"
        held[memory] += x.addressable_shards[0].data.nbytes
    return held


class Checkpoints:
    """What all processes together save every few steps, for however many of them come after.

    Args:
      folder: Where they are, or None.
      of_params: Shardings of the parameters.
      of_state: And of the optimizer's state.
    """

    def __init__(self, folder, of_params, of_state):
        self._shardings = {"params": of_params, "state": of_state}
        self._manager = folder and ocp.CheckpointManager(folder.resolve())

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if self._manager and error is None:  # it waits for the others
            self._manager.close()

    def latest(self, params, state):
        """`(next step, params, state)` of the latest checkpoint; of none, 0 and what is given."""
        number = self._manager.latest_step() if self._manager else None
        if number is None:
            return 0, params, state
        like = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            {"params": params, "state": state},
            self._shardings,
        )
        restored = self._manager.restore(number, args=ocp.args.StandardRestore(like))
        return number, restored["params"], restored["state"]

    def save(self, number, params, state):
        """If it is time to after this number of steps, saves and waits until all have saved."""
        if self._manager and number % SAVE_EVERY == 0:
            tree = {"params": params, "state": state}
            self._manager.save(number, args=ocp.args.StandardSave(tree))
            self._manager.wait_until_finished()


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        os._exit(1)  # another way out would wait for the other processes
