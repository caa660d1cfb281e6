"""Export of a Lion state to a checkpoint for bitsandbytes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from optax_lamblion._checkpoints.bitsandbytes.arrays import QUANT_STATE
from optax_lamblion._checkpoints.bitsandbytes.slots import adapts, their_codes, their_map
from optax_lamblion._checkpoints.recode import Stored, is_ours, recode, stored_leaves
from optax_lamblion._state.layout import Layout
from optax_lamblion._state.names import first_names
from optax_lamblion._state.types import LionState

_EXCHANGE = Layout("dynamic", 256)


def to_bitsandbytes(
    state: optax.OptState,
    *,
    names: Sequence[str],
    adapt: Callable[[str, np.ndarray], np.ndarray] | None = None,
    learning_rate: float = 1e-4,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
) -> dict[str, Any]:
    """Exports a Lion state as a checkpoint for bitsandbytes' `Lion`, `Lion8bit` and paged variants.

    8-bit leaves get codes and scales in bitsandbytes' format: translated exactly from
    `StateOptions(codec="dynamic")` with blocks of 256, and quantized again otherwise.

    Args:
      state: The state of a transformation that contains Lion.
      names: The paths of the parameters, in the order in which the PyTorch optimizer gets them.
      adapt: A function of a path and a momentum with the shape of the JAX parameter that returns it
        with the shape of the PyTorch parameter.
      learning_rate: The value to write as `lr`.
      b1: The value to write as the first of `betas`.
      b2: The value to write as the second of `betas`.
      weight_decay: The value to write as `weight_decay`.

    Returns:
      `{"state": {0: ...}, "param_groups": [...]}` with NumPy arrays, in the layout of bitsandbytes
      0.49.2 and later. `optax-lamblion convert` writes it to a file.

    Raises:
      ValueError: `state` contains no Lion state, or `names` don't match its leaves.

    Examples:
      >>> state = lion8bit(1e-4).init({"w": jnp.ones((64, 96))})
      >>> checkpoint = to_bitsandbytes(state, names=["w"], learning_rate=1e-4)
      >>> list(checkpoint["state"][0]["__bnb_optimizer_quant_state__"])
      ['state1', 'qmap1', 'absmax1']
    """
    nodes = [x for x in jax.tree.leaves(state, is_leaf=is_ours) if isinstance(x, LionState)]
    if not nodes:
        raise ValueError(
            "There is no state of Lion in `state`, and no other optimizer is exported: what "
            "bitsandbytes calls LAMB is another one, and AdamW has no export yet."
        )
    leaves = {path: (node, x) for node in nodes for path, x in stored_leaves(node).items()}
    if sorted(names) != sorted(leaves):
        odd = next(iter(sorted(set(names) ^ set(leaves))), names[0] if names else "")
        raise ValueError(
            f"`names` must be the {len(leaves)} leaves of the state, each once, in the order of "
            f"the other optimizer; {odd!r} is not in both. The state has "
            f"{first_names(list(leaves))}."
        )
    entries = {}
    for number, path in enumerate(names):
        node, moment = leaves[path]
        slots = _exported(path, moment, adapt)
        entries[number] = {"step": int(node.count), QUANT_STATE: slots}
    group = {
        "lr": learning_rate,
        "betas": (b1, b2),
        "eps": 0.0,
        "weight_decay": weight_decay,
        "params": list(range(len(names))),
    }
    return {"state": entries, "param_groups": [group]}


def _exported(path, stored, adapt):
    """The slots of a parameter, as bitsandbytes names them."""
    leaf = f"mu[{path!r}]"
    is_coded = stored.x.dtype == np.uint8
    adapt = adapt if adapt is not None and adapts(adapt, path, stored.x) else None
    if not is_coded or adapt is not None:
        like = jax.ShapeDtypeStruct(stored.x.shape, np.float32)
        values = np.asarray(recode(leaf, stored, like, None, None, "mu")[0])
        stored = Stored(values if adapt is None else np.asarray(adapt(path, values)))
    if not is_coded:
        return {"state1": np.ascontiguousarray(stored.x)}
    like = jax.ShapeDtypeStruct(stored.x.shape, np.uint8)
    codes, absmax = recode(leaf, stored, like, None, _EXCHANGE, "mu")
    return {
        "state1": their_codes(np.asarray(codes), signed=True),
        "qmap1": their_map(signed=True),
        "absmax1": np.asarray(absmax).reshape(-1),
    }
