"""A run that saves after every step, to be killed: `python -m tests.checkpoints.killed DIR NAME`.

It goes on from the last checkpoint in the folder. A line says which save is known to be finished.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from optax_lamblion import StateOptions, convert_state, lamb8bit, paged_lion8bit, restore_target

OPTIMIZERS = {
    "lamb8bit": lamb8bit(1e-2, weight_decay=0.1),
    "paged_lion8bit": paged_lion8bit(1e-2, options=StateOptions(page_min_size=1)),
}
PARAMS = {"w": jnp.ones((512, 512)), "b": jnp.ones(64)}


def stepped(tx):
    """A function: parameters and state after a step, by its number."""

    @jax.jit
    def step(p, state, number):
        g = jax.tree.map(lambda x: jnp.sin(x * number.astype(jnp.float32)), p)
        updates, state = tx.update(g, state, p)
        return jax.tree.map(jnp.add, p, updates), state

    return lambda p, state, number: step(p, state, jnp.int32(number))


def open_manager(folder):
    """As docs/checkpoints.md opens it."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    handler = ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(folder, options=options, item_handlers=handler)


def restored(manager, tx):
    """The number of the last step that was saved, with what it left; or those of a beginning."""
    latest = manager.latest_step()
    if latest is None:
        return -1, PARAMS, tx.init(PARAMS)
    saved = manager.item_metadata(latest)
    params = jax.tree.map(ocp.utils.to_shape_dtype_struct, PARAMS)
    target = {"params": params, "state": restore_target(tx, PARAMS, saved["state"])}
    tree = manager.restore(latest, args=ocp.args.StandardRestore(target))
    return latest, tree["params"], convert_state(tree["state"], PARAMS, tx)


def main(folder, name):
    """Steps and saves until it is killed."""
    tx = OPTIMIZERS[name]
    step = stepped(tx)
    with open_manager(pathlib.Path(folder)) as manager:
        number, p, state = restored(manager, tx)
        while True:
            number += 1
            p, state = step(p, state, number)
            manager.save(number, args=ocp.args.StandardSave({"params": p, "state": state}))
            # Orbax waits for the save before this one, before it begins with this.
            print(number - 1, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
