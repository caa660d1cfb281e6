"""Trains a small Flax model with `lion8bit`, saves checkpoints, and resumes from the latest one.

Stop it at any time and run it again: it continues, bit for bit. `python train.py --help` lists the
settings.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx

from optax_lamblion import StateOptions, clip_by_global_norm, lion8bit, state_report
from optax_lamblion.flax import Optimizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--folder", type=pathlib.Path, default="checkpoints", help="of checkpoints")
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
args = parser.parse_args()


class Model(nnx.Module):
    """Predicts a token from the one before it."""

    def __init__(self, dtype, rngs):
        common = dict(dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.embed = nnx.Embed(64, 128, **common)
        self.hidden = nnx.Linear(128, 256, **common)
        self.norm = nnx.LayerNorm(256, **common)
        self.head = nnx.Linear(256, 64, **common)

    def __call__(self, tokens):
        """Logits for the token after each of these."""
        return self.head(self.norm(nnx.relu(self.hidden(self.embed(tokens)))))


def batch_at(step):
    """The batch of a step. A real data loader has to continue at the same step as well."""
    tokens, noise = jax.random.randint(jax.random.key(step), (2, 64), 0, 64)
    return tokens, jnp.where(noise < 16, noise, (5 * tokens + 3) % 64)


@nnx.jit(donate_argnums=(0, 1))
def train_step(model, optimizer, tokens, targets):
    """Makes a step, and returns the loss before it."""

    def loss_fn(model):
        logits = model(tokens).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


def matrices_only(params):
    """No weight decay for biases and norms."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, args.steps // 10, args.steps, 1e-5)
rounding = "compensated" if args.dtype == "bfloat16" else "nearest"
options = StateOptions(param_rounding=rounding)
tx = optax.chain(
    clip_by_global_norm(1.0),
    lion8bit(schedule, weight_decay=0.1, mask=matrices_only, options=options),
)
model = Model(jnp.dtype(args.dtype), nnx.Rngs(0))
optimizer = Optimizer(model, tx, wrt=nnx.Param)

settings = ocp.CheckpointManagerOptions(save_interval_steps=args.every, max_to_keep=2)
with ocp.CheckpointManager(args.folder.absolute(), options=settings) as manager:
    if (latest := manager.latest_step()) is not None:
        like = ocp.args.StandardRestore(optimizer.checkpoint(model))
        optimizer.restore(model, manager.restore(latest, args=like))
        print(f"resumed at step {latest}", flush=True)

    nbytes = state_report(nnx.as_pure(optimizer.opt_state)).nbytes
    for step in range(int(optimizer.step[...]), args.steps):
        loss = train_step(model, optimizer, *batch_at(step))
        manager.save(step + 1, args=ocp.args.StandardSave(optimizer.checkpoint(model)))
        if (step + 1) % args.every == 0:
            rate = schedule(step)
            row = f"step {step + 1}  loss {loss:.4f}  learning rate {rate:.1e}"
            print(f"{row}  state {nbytes:,} bytes", flush=True)

    if latest != args.steps:
        print(f"final loss {loss:.8e}", flush=True)
