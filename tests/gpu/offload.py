"""How others keep the state of an optimizer in host memory, around the resident optimizer.

Both move all of it into the device and out again in the program of the step, and leave it to XLA
when that is.
"""

import jax
import optax
from jax import lax

from optax_lamblion._paging.memory import DEVICE, HOST


def leaf_by_leaf(tx):
    """Every array by itself: `jax.device_put` before its step, and after it."""
    return _around(tx, lambda tree: tree)


def at_once(tx):
    """The whole state, as MaxText does it: none is stepped or stored until all of it is there.

    In one program that is said by a barrier: `jax.device_put` of a tree is that of its arrays.
    """
    return _around(tx, lax.optimization_barrier)


def _around(tx, together):
    tx = optax.with_extra_args_support(tx)

    def init(params):
        return _move(tx.init(params), HOST)

    def update(updates, state, params=None, **extra_args):
        state = together(_move(state, DEVICE))
        updates, state = tx.update(updates, state, params, **extra_args)
        return updates, _move(together(state), HOST)

    return optax.GradientTransformationExtraArgs(init, update)


def _move(state, space):
    # Counters stay, as with paged optimizers.
    return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, state)


KINDS = {"leaf by leaf": leaf_by_leaf, "at once": at_once}
