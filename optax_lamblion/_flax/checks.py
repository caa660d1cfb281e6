"""What both optimizers for Flax are given, and what to type if it is something else."""

import jax
from flax import linen, nnx

from optax_lamblion._state.names import first_names, path_string


def check_tx(tx):
    """Raises `TypeError` unless this is an Optax transformation."""
    if not callable(getattr(tx, "init", None)) or not callable(getattr(tx, "update", None)):
        what = f"the function `{tx.__name__}`" if hasattr(tx, "__name__") else repr(tx)
        raise TypeError(
            f"`tx` must be an Optax transformation, such as `lion8bit(1e-4)`, got {what}."
        )


def check_wrt(model, wrt, graph):
    """Raises unless there is a model of NNX with variables that `wrt` selects."""
    if isinstance(model, linen.Module):
        raise TypeError(
            "`model` is a Linen module. For Linen use `TrainState.create(apply_fn=model.apply, "
            "params=params, tx=tx)`, or wrap it: `nnx.bridge.ToNNX(model, rngs=rngs)`."
        )
    if wrt is None:
        raise TypeError(
            "`Optimizer` needs `wrt`, which variables of the model are trained: "
            "`Optimizer(model, tx, wrt=nnx.Param)`, or `wrt=nnx.LoRAParam` for adapters."
        )
    variables = nnx.state(model, graph=graph)
    if jax.tree.leaves(nnx.filter_state(variables, wrt)):
        return
    leaves = jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, nnx.Variable))
    kinds = sorted({type(x).__name__ for x in leaves})
    has = f"variables of the kinds {', '.join(kinds)}" if kinds else "no variables at all"
    raise ValueError(
        f"`wrt={getattr(wrt, '__name__', wrt)}` selects nothing to train: the model has {has}. "
        "Pass a filter that selects some of them, such as `wrt=nnx.Param`."
    )


def check_grads(params, grads):
    """Raises `ValueError` unless there is a gradient for every parameter, and no other."""
    wanted, given = (
        {path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(x)}
        for x in (params, grads)
    )
    if wanted == given:
        return
    names, what = (wanted - given, "has none of") if wanted - given else (given - wanted, "has")
    raise ValueError(
        f"`grads` {what} {first_names(sorted(names))}, and `wrt` selects other parameters of the "
        "model. Take gradients with respect to those: `nnx.value_and_grad(loss, "
        "argnums=nnx.DiffState(0, optimizer.wrt))`."
    )


def check_saved(saved, expected):
    """Raises `ValueError` unless there is all that `checkpoint` returned.

    Args:
      saved: What is to be restored.
      expected: What `checkpoint` returns here.
    """
    # Libraries leave out what is empty, such as the state of plain gradient descent.
    names = [name for name, x in expected.items() if jax.tree.leaves(x)]
    if isinstance(saved, dict) and set(names) <= set(saved):
        return
    found = f"`{type(saved).__name__}`"
    if isinstance(saved, dict):
        found = f"one with {first_names(list(saved)) or 'nothing'}"
    raise ValueError(
        f"`restore` needs what `checkpoint` returned, a dict with {first_names(names)}; got "
        f"{found}. If it is an optimizer state alone, `convert_state(state, params, tx)` takes it."
    )
