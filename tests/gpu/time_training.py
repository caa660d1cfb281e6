"""Whole training steps: what paging costs where there is a model to hide the link behind.

The model is shaped like a transformer, with 12 squares of its width in a block, and has about 1e9
parameters. It is made of matrix products; a product of elements stands for attention. Loss,
gradients and optimizer are one program. Optimizers are parts of their own, and tokens become more,
so that peaks are told apart.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from optax_lamblion import apply_fused
from tests.gpu import offload, paging
from tests.gpu.records import Skipped
from tests.gpu.time_paged import page_bytes
from tests.gpu.timing import Program

TOKENS = (1024, 4096, 16384)
"""In a step."""
_WIDTH, _BLOCKS = 2048, 21
_ACTIVATIONS = 20
"""Bytes of them per token, block and byte of the width, at most: what a backward pass keeps."""


def programs(which, run):
    """Training with Lion in 8 bits: `"resident"`, `"paged"`, or one of `offload.KINDS`."""
    blocks = _blocks(run)
    for tokens in TOKENS[:1] if run.tiny else TOKENS[1:2] if run.quick else TOKENS:
        for clip in (False, True):
            if clip and which in offload.KINDS:
                continue
            tx = _optimizer(which, run)
            if clip:
                tx = optax.chain(optax.clip_by_global_norm(1.0), tx)
            yield _program(which, tx, clip, blocks, tokens, run)


def _optimizer(which, run):
    rate = 1e-6  # many steps of one batch have to end well
    if which == "paged":
        return paging.optimizer("lion8bit", learning_rate=rate, page_bytes=page_bytes(run, 32))
    tx = paging.optimizer("lion8bit", paged=False, learning_rate=rate)
    return tx if which == "resident" else offload.KINDS[which](tx)


def _program(which, tx, clip, blocks, tokens, run):
    width = blocks[0]["q"][0]
    shapes = [shape for block in blocks for shape in block.values()]
    size = sum(map(math.prod, shapes))

    def carry():
        params = [
            {k: _random(shape, i, shape[0] ** -0.5) for k, shape in block.items()}
            for i, block in enumerate(blocks)
        ]
        return params, tx.init(params), jnp.float32(0)

    def batch():
        _check_memory(size, tokens * width * len(blocks))
        return _random((tokens // (64 if run.interpret else 1), width), 99, 1.0)

    def step(carry, x):
        params, state, _ = carry
        loss, grads = jax.value_and_grad(loss_of)(params, x)
        return *apply_fused(tx, params, grads, state), loss

    forms = {i: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for i, shape in enumerate(shapes)}
    come = go = 0
    if which != "resident":
        come, go = paging.moved("lion8bit", forms, page_bytes=page_bytes(run, 32))
    return Program(
        f"training: {which} lion8bit, {tokens} tokens" + ", clipped" * clip,
        step,
        carry,
        batch,
        size,
        (come + go) / size,
        about={
            "paging": "training",
            "which": which,
            "tokens": tokens,
            "clip": clip,
            "link_bytes_in": come,
            "link_bytes_out": go,
            "tensors": len(shapes),
        },
        profile=tokens == TOKENS[1] and not clip,
    )


def _blocks(run):
    """Shapes of the model's blocks."""
    width, blocks = (512, 1) if run.interpret else (_WIDTH, _BLOCKS)
    square = {name: (width, width) for name in ("q", "k", "v", "out")}
    return [square | {"up": (width, 4 * width), "down": (4 * width, width)}] * blocks


def loss_of(params, x):
    """A number that depends on every parameter."""
    for block in params:
        y = _normed(x)
        x = x + (jnp.tanh(y @ block["q"]) * (y @ block["k"]) + y @ block["v"]) @ block["out"]
        x = x + jax.nn.gelu(_normed(x) @ block["up"]) @ block["down"]
    return jnp.mean(jnp.square(_normed(x).astype(jnp.float32) - 1))


def _normed(x):
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)).astype(x.dtype)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _random(shape, seed, scale):
    return scale * jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def _check_memory(size, activations):
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
    # Parameters, gradients and their codes; and two bytes for a number.
    need = 6 * size + 2 * _ACTIVATIONS * activations
    if need > limit:
        raise Skipped(f"needs {need / 1e9:.0f} GB, and there are {limit / 1e9:.0f} GB")
