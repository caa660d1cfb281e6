"""The train state for Linen."""

import dataclasses
from typing import Any

import jax
from flax.core import meta
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from optax_lamblion._checkpoints.conversion import convert_state
from optax_lamblion._checkpoints.trees import as_dicts, filled
from optax_lamblion._flax.checks import check_saved, check_tx
from optax_lamblion._optimizers.fused import apply_fused


class TrainState(train_state.TrainState):
    """A Linen `TrainState` whose step is `apply_fused`.

    Use it in place of `flax.training.train_state.TrainState`: build it with `create`, and add
    fields in a subclass. If the last transformation in `tx` is an optimizer of this package, a step
    never materialises the updates. Donate the train state, `jax.jit(step, donate_argnums=0)`, and
    the step needs no second copy of it.

    Boxed parameters (`nn.with_partitioning`) stay boxed; their state consists of bare arrays. The
    collection that gradients overwrite in fp8 layers is handled as in Flax.

    Examples:
      >>> from flax import linen as nn
      >>> from optax_lamblion.flax import TrainState
      >>> model, x, y = nn.Dense(64), jnp.ones((8, 256)), jnp.ones((8, 64))
      >>> params = model.init(jax.random.key(0), x)["params"]
      >>> tx = lion8bit(1e-3, weight_decay=0.1)
      >>> state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
      >>> def train_step(state, x, y):
      ...   def loss_of(params):
      ...     return ((state.apply_fn({"params": params}, x) - y) ** 2).mean()
      ...   return state.apply_gradients(grads=jax.grad(loss_of)(state.params))
      >>> state = jax.jit(train_step, donate_argnums=0)(state, x, y)
      >>> int(state.step), state.opt_state.mu["kernel"].dtype
      (1, dtype('uint8'))
    """

    @classmethod
    def create(cls, *, apply_fn: Any, params: Any, tx: Any, **fields: Any) -> "TrainState":
        """A train state at step 0, with a fresh optimizer state.

        Args:
          apply_fn: Usually `model.apply`.
          params: The parameters of the model.
          tx: Any Optax transformation.
          **fields: The fields of a subclass.

        Raises:
          TypeError: `tx` is not an Optax transformation.
        """
        check_tx(tx)
        opt_state = tx.init(meta.unbox(_trained(params)))
        return cls(step=0, apply_fn=apply_fn, params=params, tx=tx, opt_state=opt_state, **fields)

    def apply_gradients(
        self, *, grads: Any, extra_args: dict[str, Any] | None = None, **fields: Any
    ) -> "TrainState":
        """The train state after a step.

        Args:
          grads: Gradients, with the structure of `params`.
          extra_args: `grad_scale`, which multiplies the gradients (see `apply_fused`), and any
            arguments of `tx.update`.
          **fields: Other fields of the train state to replace, such as batch statistics.
        """
        boxed = _trained(self.params)
        params, opt_state = apply_fused(
            self.tx,
            meta.unbox(boxed),
            meta.unbox(_trained(grads)),
            self.opt_state,
            **(extra_args or {}),
        )
        params = meta.replace_boxed(boxed, params)
        if OVERWRITE_WITH_GRADIENT in grads:
            overwritten = grads[OVERWRITE_WITH_GRADIENT]
            params = {"params": params, OVERWRITE_WITH_GRADIENT: overwritten}
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **fields)

    def checkpoint(self) -> dict[str, Any]:
        """A tree of arrays with everything that training needs to resume.

        Nested dicts with string keys, one for every field: `"step"`, `"params"`, `"opt_state"`, and
        those of a subclass. See `Optimizer.checkpoint`.

        Examples:
          >>> from flax import serialization
          >>> from optax_lamblion.flax import TrainState
          >>> params = {"kernel": jnp.ones((64, 256))}
          >>> state = TrainState.create(apply_fn=None, params=params, tx=lion8bit(1e-3))
          >>> data = serialization.to_bytes(state.checkpoint())
          >>> state = state.restore(serialization.msgpack_restore(data))
        """
        return {name: as_dicts(x) for name, x in self._saved().items()}

    def _saved(self):
        """The fields that are saved: all that are trees of arrays."""
        fields = dataclasses.fields(self)
        names = [x.name for x in fields if x.metadata.get("pytree_node", True)]
        return {name: getattr(self, name) for name in names}

    def restore(self, saved: Any, *, missing: str = "refuse") -> "TrainState":
        """Returns the train state of a checkpoint.

        Training resumes bit for bit, in the layout and memory and on the mesh of this train state,
        which may consist of shapes from `jax.eval_shape`. See `Optimizer.restore`.

        Args:
          saved: The tree that `checkpoint` returned, as restored by Orbax or `flax.serialization`.
          missing: `"fresh"` keeps this train state's values for whatever was not saved, or with
            another shape.

        Raises:
          ValueError: The checkpoint is of another model or another kind of optimizer; the message
            names the leaf. See `convert_state`.

        Warns:
          UserWarning: With `missing="fresh"`, what was kept and what was dropped.
        """
        own = self._saved()
        check_saved(saved, own)
        del own["opt_state"]
        others = {name: x for name, x in saved.items() if name != "opt_state"}
        new = filled(own, others, missing=missing)
        params = meta.unbox(_trained(self.params))
        opt_state = convert_state(saved.get("opt_state"), params, self.tx, missing=missing)
        return self.replace(opt_state=opt_state, **new)


def _trained(params):
    """What the optimizer steps: all, but for the collection that gradients overwrite."""
    if not isinstance(params, jax.Array) and OVERWRITE_WITH_GRADIENT in params:
        return params["params"]
    return params
