"""What 8-bit state changes in single steps: the figures of `docs/accuracy.md`.

`test_accuracy.py` and `test_lamb_is_lamb.py` in `tests/optimizers` bound the same quantities.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.quality.tasks import digits
from optax_lamblion import StateOptions, lamb8bit, scale_by_lamb, scale_by_lion
from pallas_kernels import dequantize

CODECS = ("power", "dynamic", "linear")
SIGMAS = {"i.i.d.": 0.0, "log-normal": 1.0}
_LAMB = dict(eps=1e-6, weight_decay=0.01)


def measure():
    """All of it, as JSON has it."""
    return {
        "signs": {
            codec: {name: signs_turned(codec, sigma) for name, sigma in SIGMAS.items()}
            for codec in CODECS
        },
        "direction": {f"{sigma:g}": direction_error(sigma) for sigma in (0.0, 1.0, 2.0)},
        "drift": {name: drift(sigma) for name, sigma in SIGMAS.items()},
        "length": step_length(),
        "course": course(),
    }


def after(txs, steps, sigma, elements, seed=0):
    """The last updates and states of transformations that see the same gradients.

    Every element has a log-normal scale of its own; a `sigma` of 0 is i.i.d. normal.
    """
    key = jax.random.key(seed)
    scale = jnp.exp(sigma * jax.random.normal(jax.random.fold_in(key, steps), (elements,)))

    @jax.jit
    def run(params, scale):
        def step(carry, t):
            g = scale * jax.random.normal(jax.random.fold_in(key, t), (elements,))
            pairs = [tx.update(g, state, params) for tx, (_, state) in zip(txs, carry, strict=True)]
            return pairs, None

        start = [(params, tx.init(params)) for tx in txs]
        return jax.lax.scan(step, start, jnp.arange(steps))[0]

    return run(jnp.ones(elements), scale)  # as constants they would be folded, for minutes


def signs_turned(codec, sigma, elements=2**20):
    """The share of Lion's signs that 8-bit momentum turns at step 50."""
    txs = scale_by_lion(bits=32), scale_by_lion(bits=8, options=StateOptions(codec=codec))
    (exact, _), (coded, _) = after(txs, 50, sigma, elements)
    return float(f"{jnp.mean(exact != coded):.5f}")


def direction_error(sigma, elements=65_536):
    """`m / (sqrt(v) + eps)` after 100 steps: rms error over rms, and the worst element's error."""
    txs = [scale_by_lamb(bits=bits) for bits in (32, 8)]
    exact, coded = (_direction(state) for _, state in after(txs, 100, sigma, elements))
    off = coded - exact
    rms = np.sqrt(np.mean(off**2) / np.mean(exact**2))
    return {"rms": float(f"{rms:.4f}"), "worst": float(f"{np.abs(off).max():.3f}")}


def drift(sigma, steps=3000, elements=8192):
    """The mean of log(stored v / float32 v)."""
    txs = [scale_by_lamb(bits=bits) for bits in (32, 8)]
    (_, v), (_, v8) = (_moments(state) for _, state in after(txs, steps, sigma, elements))
    return float(f"{np.mean(np.log(v8 / v)):.4f}")


def _moments(state):
    if state.mu.dtype != jnp.uint8:
        return np.float64(state.mu), np.float64(state.nu)
    m = dequantize(state.mu, state.mu_absmax)
    return np.float64(m), np.float64(dequantize(state.nu, state.nu_absmax, signed=False))


def _direction(state, b1=0.9, b2=0.999, eps=1e-8):
    t = float(state.count)
    m, v = _moments(state)
    return m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)


def step_length(elements=65_536, learning_rate=0.01):
    """How far the length of a LAMB step is from learning rate times norm, relatively."""
    p, g = (jax.random.normal(jax.random.key(i), (elements,)) for i in range(2))
    tx = lamb8bit(learning_rate)
    updates, _ = tx.update(g, tx.init(p), p)
    lengths = [np.linalg.norm(np.float64(x)) for x in (updates, p)]
    return float(f"{abs(lengths[0] / lengths[1] / learning_rate - 1):.1g}")


def course(steps=200, batch_size=64):
    """How far trainings end from that of `optax.lamb`, relative to the way from the start.

    With `lamb8bit` on the same batches, and with `optax.lamb` on others.
    """
    start, task = _network(jax.random.key(0)), digits()
    options = dict(task=task, start=start, steps=steps, batch_size=batch_size)
    end = _train(optax.lamb(0.01, **_LAMB), seed=0, **options)
    coded = _train(lamb8bit(0.01, **_LAMB), seed=0, **options)
    other = _train(optax.lamb(0.01, **_LAMB), seed=1, **options)
    way = _distance(start, end)
    return {
        "lamb8bit": float(f"{_distance(coded, end) / way:.4f}"),
        "other batches": float(f"{_distance(other, end) / way:.4f}"),
    }


def _distance(a, b):
    return float(optax.tree.norm(optax.tree.sub(a, b)))


def _network(key):
    """A multilayer perceptron without kinks, at which a difference of one rounding would grow."""
    sizes = {"hidden": (64, 256), "deep": (256, 256), "out": (256, 10)}
    return {
        name: jax.random.normal(jax.random.fold_in(key, i), shape) / np.sqrt(shape[0])
        for i, (name, shape) in enumerate(sizes.items())
    }


def _loss(params, batch):
    images, labels = batch
    x = images.reshape(len(images), -1)
    for name in ("hidden", "deep"):
        x = jnp.tanh(x @ params[name])
    logits = x @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _train(tx, task, start, seed, steps, batch_size):
    @jax.jit
    def run(params):
        def step(carry, t):
            params, state = carry
            key = jax.random.fold_in(jax.random.key(seed), t)
            grads = jax.grad(_loss)(params, task.batch(task.data, key, batch_size))
            # Optax's own LAMB multiplies an int32 by a float.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[0][0]

    return run(start)
