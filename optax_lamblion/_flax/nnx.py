"""The optimizer for NNX.

What Flax keeps in variables is taken out of them before anything here sees it: state would get the
metadata of its parameter otherwise, and with it an annotation that does not fit.
"""

import functools
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import NamedSharding

from optax_lamblion._checkpoints.conversion import convert_state
from optax_lamblion._checkpoints.places import struct, with_places
from optax_lamblion._checkpoints.trees import as_dicts, filled
from optax_lamblion._flax.checks import check_grads, check_saved, check_tx, check_wrt
from optax_lamblion._optimizers.fused import apply_fused
from optax_lamblion._paging.memory import abstract_state, is_traced
from optax_lamblion._state.sharding import state_sharding


class Optimizer(nnx.Optimizer):
    """An `nnx.Optimizer` whose step is `apply_fused`.

    Use it in place of `nnx.Optimizer`, with any Optax transformation. If the last transformation in
    `tx` is an optimizer of this package, it writes the parameters itself and never materialises the
    updates. Donate model and optimizer, `nnx.jit(step, donate_argnums=(0, 1))`, and the step needs
    no second copy of either.

    The state consists of bare arrays, without the metadata of the model's variables. This makes
    annotated models (`nnx.with_partitioning`) work, because the scales of 8-bit state have another
    shape than the parameter, and paged state is in another memory. The state is placed according to
    `state_sharding`.

    Args:
      model: An NNX module.
      tx: Any Optax transformation, such as `lion8bit(1e-4)` or an `optax.chain`.
      wrt: The variables to train, as an NNX filter: `nnx.Param`, or `nnx.LoRAParam` for adapters.
        Required. Unless it is `nnx.Param`, take gradients with respect to the same variables:
        `nnx.grad(loss, argnums=nnx.DiffState(0, wrt))`.
      graph: As in `nnx.Optimizer`; None uses the mode of the context.

    Attributes:
      step: The number of steps, a variable.
      tx: The transformation.
      opt_state: The state of `tx`, in variables. `nnx.as_pure(optimizer.opt_state)` returns it in
        the form that all other functions of this package take.

    Raises:
      TypeError: `wrt` is missing, `tx` is not an Optax transformation, or `model` is a Linen
        module.
      ValueError: The model has no variables that `wrt` selects.

    Examples:
      >>> from flax import nnx
      >>> from optax_lamblion.flax import Optimizer
      >>> model = nnx.Linear(256, 64, rngs=nnx.Rngs(0))
      >>> optimizer = Optimizer(model, lion8bit(1e-3, weight_decay=0.1), wrt=nnx.Param)
      >>> def train_step(model, optimizer, x, y):
      ...   loss, grads = nnx.value_and_grad(lambda model: ((model(x) - y) ** 2).mean())(model)
      ...   optimizer.update(model, grads)
      ...   return loss
      >>> step = nnx.jit(train_step, donate_argnums=(0, 1))
      >>> losses = [step(model, optimizer, jnp.ones((8, 256)), jnp.ones((8, 64))) for _ in range(3)]
      >>> bool(losses[2] < losses[0]), int(optimizer.step[...])
      (True, 3)
    """

    def __init__(
        self,
        model: Any,
        tx: optax.GradientTransformation,
        *,
        wrt: Any = None,
        graph: bool | None = None,
    ):
        check_tx(tx)
        check_wrt(model, wrt, graph)
        # Of bare arrays, because state would get the metadata of its parameter, annotations too.
        bare = optax.GradientTransformation(functools.partial(_init, tx), tx.update)
        super().__init__(model, bare, wrt=wrt, graph=graph)
        self.tx = tx

    def update(self, model: Any, grads: Any, /, **extra_args: Any) -> None:
        """Takes a step: updates the parameters of the model and the state of the optimizer.

        Unlike `nnx.Optimizer.update`, it has no updates to return.

        Args:
          model: The model.
          grads: Gradients, as returned by `nnx.grad`.
          **extra_args: `grad_scale`, which multiplies the gradients (see `apply_fused`), and any
            arguments of `tx.update`.

        Raises:
          ValueError: The gradients don't match the parameters that `wrt` selects.
        """
        params, grads = (_arrays(x, self.wrt, self.graph) for x in (model, grads))
        check_grads(params, grads)
        state, extra_args = nnx.as_pure((self.opt_state, extra_args))
        params, state = apply_fused(self.tx, params, grads, state, **extra_args)
        nnx.update(model, params)
        self._set(self.step[...] + 1, state)

    def checkpoint(self, model: Any, *, only: Any = ...) -> dict[str, Any]:
        """A tree of arrays with everything that training needs to resume.

        Nested dicts with string keys: `"model"` contains all variables of the model (random keys as
        their data), `"opt_state"` and `"step"` those of the optimizer. Orbax and
        `flax.serialization` can save it. The arrays are the ones in use, not copies, so save them
        before a step donates them. The same tree is Orbax's target for restoring:
        `checkpointer.restore(path, optimizer.checkpoint(model))`.

        Args:
          model: The model.
          only: The variables to include, as an NNX filter; all of them by default. With
            `nnx.LoRAParam`, a checkpoint contains the adapters but not the base model.

        Returns:
          `{"model": ..., "opt_state": ..., "step": ...}`.

        Examples:
          >>> from flax import nnx, serialization
          >>> from optax_lamblion.flax import Optimizer
          >>> model = nnx.Linear(256, 64, rngs=nnx.Rngs(0))
          >>> optimizer = Optimizer(model, lion8bit(1e-3), wrt=nnx.Param)
          >>> data = serialization.to_bytes(optimizer.checkpoint(model))
          >>> optimizer.restore(model, serialization.msgpack_restore(data))
        """
        return {name: as_dicts(x) for name, x in self._saved(model, only).items()}

    def restore(self, model: Any, saved: Any, *, only: Any = ..., missing: str = "refuse") -> None:
        """Restores a checkpoint into the model and this optimizer.

        Training resumes bit for bit, in the same process or another one. The state is converted to
        the layout of this optimizer if necessary (bit width, block size, codec), and placed where
        the optimizer keeps it: on the mesh of the model, in host memory if it is paged. If
        anything is wrong, nothing is written.

        Args:
          model: The model, whose variables are all overwritten.
          saved: The tree that `checkpoint` returned, as restored by Orbax or `flax.serialization`.
          only: The filter that was passed to `checkpoint`. Other variables stay unchanged.
          missing: What to do about variables that were not saved, or with another shape, such as
            those of a new head. `"refuse"` raises. `"fresh"` keeps the model's own values, and
            starts their moments at zero.

        Raises:
          ValueError: The checkpoint is of another model or another kind of optimizer; the message
            names the leaf. See `convert_state`.

        Warns:
          UserWarning: With `missing="fresh"`, what was kept and what was dropped.
        """
        own = self._saved(model, only)
        check_saved(saved, own)
        del own["opt_state"]
        others = {name: x for name, x in saved.items() if name != "opt_state"}
        new = filled(own, others, missing=missing)
        params = _arrays(model, self.wrt, self.graph)
        state = convert_state(saved.get("opt_state"), params, self.tx, missing=missing)
        nnx.update(model, new["model"])
        self._set(new["step"], state)

    def _saved(self, model, only):
        """What a checkpoint has, in the types of this process."""
        state = nnx.as_pure(self.opt_state)
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state)):
            params = _arrays(model, self.wrt, self.graph)
            state = with_places(abstract_state(self.tx, params), params, always=True)
        model, step = _arrays(model, only, self.graph), _on_devices(nnx.as_pure(self.step))
        return {"model": model, "opt_state": state, "step": step}

    def _set(self, step, state):
        nnx.update(self.opt_state, nnx.state(state, graph=self.graph))
        self.step.set_value(step)


def shardings(node: Any) -> nnx.StateSharding:
    """The shardings of the arrays of a module or an optimizer, for `in_shardings` of `nnx.jit`.

    On a mesh with Auto axes, XLA chooses where the results of a step go. With these shardings, it
    returns the parameters and the state to their places, so that they can be updated in place.

    Args:
      node: A module or an optimizer whose arrays are already placed.

    Returns:
      The value of `in_shardings` for that argument.

    Examples:
      >>> from flax import nnx
      >>> from optax_lamblion.flax import Optimizer, shardings
      >>> model = nnx.Linear(256, 64, rngs=nnx.Rngs(0))
      >>> optimizer = Optimizer(model, lion8bit(1e-3), wrt=nnx.Param)
      >>> where = shardings(model), shardings(optimizer), None
      >>> step = nnx.jit(Optimizer.update, in_shardings=where, donate_argnums=(0, 1))
    """
    return nnx.StateSharding(jax.tree.map(lambda x: x.sharding, nnx.state(node)))


def _init(tx, params):
    """A fresh state for variables, where their annotations say so if nothing else does.

    Inside `jit`, on a mesh with Auto axes, XLA would put zeros on every device.
    """
    arrays = nnx.as_pure(params)
    state = tx.init(arrays)
    mesh: Any = jax.sharding.get_abstract_mesh()
    if not (is_traced() and mesh.axis_names and mesh.are_all_axes_auto and _annotated(params)):
        return state
    for_params = nnx.as_pure(nnx.get_named_sharding(params, mesh))
    return jax.lax.with_sharding_constraint(state, state_sharding(tx, arrays, for_params))


def _annotated(variables):
    """Whether variables were put where annotations say as they were made."""
    leaves = jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return any(x.get_metadata("out_sharding", None) and x.eager_sharding for x in leaves)


def _arrays(node, kinds, graph):
    """Variables of those kinds as bare arrays, or as shapes if they are of `nnx.eval_shape`."""
    return jax.tree.map(_on_devices, nnx.as_pure(nnx.state(node, kinds, graph=graph)))


def _on_devices(x):
    """A shape with its place on a mesh, of which `nnx.eval_shape` knows no devices."""
    sharding = getattr(x, "sharding", None)
    if not (isinstance(x, jax.ShapeDtypeStruct) and isinstance(sharding, NamedSharding)):
        return x
    return struct(x, NamedSharding(jax.sharding.get_mesh(), sharding.spec))
