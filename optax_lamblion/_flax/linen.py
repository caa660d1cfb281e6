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
    """A Linen `TrainState` that writes new parameters in place of updates.

    Use it where you would use `flax.training.train_state.TrainState`: make it with `create`, and
    add fields in a subclass. A step is `apply_fused`, so that an optimizer of this package that
    comes last in `tx` materialises no updates. Donate the train state,
    `jax.jit(step, donate_argnums=0)`, and the step needs no second copy of it.

    Parameters in boxes (`nn.with_partitioning`) stay in them; their state is made of bare arrays.
    The collection that gradients overwrite, of fp8 layers, is overwritten as in Flax.

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
          params: Parameters of the model.
          tx: Any Optax transformation.
          **fields: Those of a subclass.

        Raises:
          TypeError: `tx` is no Optax transformation.
        """
        check_tx(tx)
        opt_state = tx.init(meta.unbox(_trained(params)))
        return cls(step=0, apply_fn=apply_fn, params=params, tx=tx, opt_state=opt_state, **fields)

    def apply_gradients(
        self, *, grads: Any, extra_args: dict[str, Any] | None = None, **fields: Any
    ) -> "TrainState":
        """The train state after a step.

        Args:
          grads: Gradients, in the structure of `params`.
          extra_args: `grad_scale`, by which gradients are multiplied (see `apply_fused`), and
            whatever `tx.update` takes.
          **fields: Other fields of the train state that are replaced, such as batch statistics.
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
        """Everything that training needs to resume, as a tree of arrays to be saved.

        Nested dicts with strings for keys, one for every field: `"step"`, `"params"`,
        `"opt_state"`, and those of a subclass. See `Optimizer.checkpoint`.

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
        """A train state that resumes from a checkpoint.

        Training resumes bit for bit, in the layout, the memory and on the mesh of this one. See
        `Optimizer.restore`. This train state may be one of shapes, from `jax.eval_shape`.

        Args:
          saved: What `checkpoint` returned, as Orbax or `flax.serialization` gives it back.
          missing: `"fresh"` keeps what was not saved, or in another shape.

        Raises:
          ValueError: The checkpoint is of another model or of another kind of optimizer; the
            message names the leaf. See `convert_state`.

        Warns:
          UserWarning: With `missing="fresh"`, what was kept and what was left behind.
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
