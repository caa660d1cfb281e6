"""Steps of paged optimizers as cases: many leaves on shared pages, and leaves in pieces."""

import functools
import itertools

import jax
import jax.numpy as jnp
import optax

import optax_lamblion
from optax_lamblion import StateOptions, apply_fused, clip_by_global_norm
from tests.deviceless.cases import Case, case

NAMES = ("paged_lion8bit", "paged_lion32bit", "paged_lamb8bit", "paged_lamb32bit")
PAGE_BYTES = 2**24
IN_FLIGHT = 2
# How many, and of which shape for an optimizer of 8 and of 32 bits. A page holds one to three of
# the first two kinds. The others have to be cut.
LEAVES = {
    "16 leaves": (16, {8: (2048, 2048), 32: (640, 1024)}),
    "64 leaves": (64, {8: (2048, 2048), 32: (640, 1024)}),
    "3 large leaves": (3, {8: (4096, 4096), 32: (4096, 4096)}),
    "2 ragged leaves": (2, {8: (4096 * 4096 + 4097,), 32: (4096 * 4096 + 4097,)}),
}
FORMS = {"apply_fused": True, "update": False}


def shapes(name, leaves):
    """The shapes of the leaves, for the optimizer of that name."""
    count, by_bits = LEAVES[leaves]
    return [by_bits[32 if "32" in name else 8]] * count


def params(name, leaves):
    """Parameters in bfloat16."""
    pairs = enumerate(shapes(name, leaves))
    return {f"w{i:02}": jax.ShapeDtypeStruct(shape, jnp.bfloat16) for i, shape in pairs}


def optimizer(name, **kwargs):
    """The optimizer, with small pages."""
    options = StateOptions(page_bytes=PAGE_BYTES, pages_in_flight=IN_FLIGHT, **kwargs)
    return getattr(optax_lamblion, name)(1e-3, weight_decay=0.1, options=options)


def _plain(tx, p, g, state):
    # A gradient that the program has computed, as in training.
    updates, state = tx.update(jax.tree.map(jnp.sin, g), state, p)
    return optax.apply_updates(p, updates), state


def _fused(tx, p, g, state):
    return apply_fused(tx, p, jax.tree.map(jnp.sin, g), state)


def _case(step, tx, p):
    state = jax.eval_shape(tx.init, p)
    return Case(functools.partial(step, tx), (p, p, state), donate=(0, 2))


def step(name, leaves, fused, **kwargs):
    """A `Case`: one step, with further options of the state."""
    return _case(_fused if fused else _plain, optimizer(name, **kwargs), params(name, leaves))


for _name, _leaves, (_form, _is_fused) in itertools.product(NAMES, LEAVES, FORMS.items()):
    _step = _fused if _is_fused else _plain
    case(f"{_name}/{_leaves}/{_form}", targets=("h200",))(
        lambda name=_name, leaves=_leaves, step=_step: _case(
            step, optimizer(name), params(name, leaves)
        )
    )

# The state through a branch, a loop, and the substitute for `optax.MultiSteps`.


def _scanned(tx, p, g, state):
    def body(carry, _):
        return _fused(tx, carry[0], g, carry[1]), None

    return jax.lax.scan(body, (p, state), length=5)[0]


WRAPPED = {
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "accumulated": lambda tx: optax.chain(
        optax.MultiSteps(optax.identity(), 4).gradient_transformation(),
        optax.transforms.conditionally_transform(tx, lambda step: step % 4 == 3),
    ),
    "scan": lambda tx: tx,
}
for _wrapper, _wrap in WRAPPED.items():
    case(f"paged_lion8bit/{_wrapper}", targets=("h200",))(
        lambda wrapper=_wrapper, wrap=_wrap: _case(
            _scanned if wrapper == "scan" else _plain,
            wrap(optimizer("paged_lion8bit")),
            params("paged_lion8bit", "16 leaves"),
        )
    )


# Training: eight layers, their gradients, and the step, with or without a clip that has to see all
# gradients first, and then writes them scaled (Optax's), or does not (ours).
LAYERS = 8


def _train(clip):
    tx = optimizer("paged_lion8bit")
    tx = optax.chain(clip(1.0), tx) if clip else tx
    p = {f"layer_{i}": jax.ShapeDtypeStruct((2048, 4096), jnp.bfloat16) for i in range(LAYERS)}
    batch = jax.ShapeDtypeStruct((4096, 2048), jnp.bfloat16)

    def loss(p, x):
        for i in range(LAYERS):
            x = jnp.tanh(x @ p[f"layer_{i}"])[:, :2048]
        return jnp.mean(x.astype(jnp.float32) ** 2)

    def step(p, batch, state):
        return apply_fused(tx, p, jax.grad(loss)(p, batch), state)

    return Case(step, (p, batch, jax.eval_shape(tx.init, p)), donate=(0, 2))


CLIPS = {
    "": None,
    ", clipped": clip_by_global_norm,
    ", clipped by Optax": optax.clip_by_global_norm,
}
for _how, _clip in CLIPS.items():
    case(f"paged_lion8bit/training{_how}", targets=("h200",))(functools.partial(_train, _clip))

# A state that is on the device, or does not say that it is not: as some restores leave it.


def _restored(name, leaves):
    tx, p = optimizer(name), params(name, leaves)
    state = jax.eval_shape(tx.init, p)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    return Case(functools.partial(_fused, tx), (p, p, state), donate=(0, 2))


for _name in NAMES:
    case(f"{_name}/3 large leaves/restored", targets=("h200",))(
        functools.partial(_restored, _name, "3 large leaves")
    )
for _name, _leaves in itertools.product(NAMES, ("64 leaves", "3 large leaves")):
    case(f"{_name}/{_leaves}/init", targets=("h200",))(
        lambda name=_name, leaves=_leaves: Case(optimizer(name).init, (params(name, leaves),))
    )
