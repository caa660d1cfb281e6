"""Steps behind `clip_by_global_norm`, and of gradients with a `grad_scale`, as cases."""

import functools

import jax
import jax.numpy as jnp
import optax

import optax_lamblion
from optax_lamblion import apply_fused, clip_by_global_norm
from tests.deviceless import cases, meshes
from tests.deviceless.cases import Case, case

LEAVES = 2
NAMES = "lion8bit", "lamb8bit", "adamw8bit"
MESHES = {"lion8bit": ("explicit", {}), "lamb8bit": ("auto", dict(percentile_clipping=5))}
"""Axes, and whether there is another clip: its norms are to be those of the first one."""


def params(leaves):
    """So many equal leaves."""
    return {str(i): jax.ShapeDtypeStruct(cases.SHAPE, jnp.bfloat16) for i in range(leaves)}


def chained(name, clip=clip_by_global_norm, **kwargs):
    """The optimizer of that name, behind a clip."""
    make = getattr(optax_lamblion, name)
    return optax.chain(clip(1.0), make(1e-3, weight_decay=0.1, **kwargs))


def scaled_step(tx, params):
    """A `Case`: one step of gradients that are multiplied by a scalar, all of it donated."""
    state = jax.eval_shape(tx.init, params)

    def step(params, grads, state, scale):
        return apply_fused(tx, params, grads, state, grad_scale=scale)

    scale = jax.ShapeDtypeStruct((), jnp.float32)
    return Case(step, (params, params, state, scale), donate=(0, 1, 2))


def _case(name, make, *args, **kwargs):
    case(f"clipped/{name}", targets=("h200",))(functools.partial(make, *args, **kwargs))


def _clipped(name, clip, leaves):
    return cases.step(chained(name, clip), params(leaves), fused=True)


def _scaled(name):
    return scaled_step(getattr(optax_lamblion, name)(1e-3, weight_decay=0.1), params(1))


def _all_at_once(name):
    return scaled_step(chained(name, percentile_clipping=5), params(1))


def _on_mesh(name, kind, kwargs):
    return meshes.step(chained(name, **kwargs), kind, True)


for _name in NAMES:
    _case(f"{_name}/ours", _clipped, _name, clip_by_global_norm, LEAVES)
    _case(f"{_name}/scaled", _scaled, _name)
    _case(f"{_name}/scaled, by percentile too", _all_at_once, _name)
_case("lion8bit/Optax's", _clipped, "lion8bit", optax.clip_by_global_norm, LEAVES)
for _name, _on in MESHES.items():
    _case(f"{_name}/8", _on_mesh, _name, *_on)
