"""Codes in the host memory of a TPU: refused before XLA compiles anything.

No TPU is needed for that: a program is traced and lowered for one, which is as far as it may come.
"""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from optax_lamblion import _implementation, apply_fused
from tests.optimizers import problem
from tests.variants import every

TPU = AbstractMesh(
    (), (), abstract_device=AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
)
in_8_bits = every(lambda v: v.paged and v.bits == 8)
in_32_bits = every(lambda v: v.paged and v.bits == 32)


def message(v):
    return f"XLA cannot compile a step for TPUs .*Use `{v.resident.name}`.*32 bits"


@in_8_bits
def test_init_refuses_them_for_devices_that_are_not_here(v):
    for init in (v().init, jax.jit(v().init)):
        with jax.sharding.use_abstract_mesh(TPU), pytest.raises(ValueError, match=message(v)):
            init(problem.params())


@in_8_bits
def test_init_refuses_them_for_those_that_are(v, monkeypatch):
    tpu = types.SimpleNamespace(platform="tpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [tpu])
    with pytest.raises(ValueError, match=message(v)):
        jax.jit(v().init)(problem.params())


def lower(v, **options):
    """A step for a TPU, as StableHLO."""
    tx = v(**options)
    p = {"w": jnp.ones((1024, 256))}
    step = jax.jit(lambda p, g, state: apply_fused(tx, p, g, state))
    return step.trace(p, p, tx.init(p)).lower(lowering_platforms=("tpu",)).as_text()


@in_8_bits
def test_a_step_is_refused_when_it_is_compiled_for_one(v):
    """As with a state that was made elsewhere."""
    with pytest.raises(ValueError, match="a step for TPUs .*Use a resident optimizer"):
        lower(v)


@in_32_bits
def test_floats_are_not_refused(v):
    assert "annotate_device_placement" in lower(v)
    with jax.sharding.use_abstract_mesh(TPU):
        jax.eval_shape(v().init, problem.params())


def test_info_says_it(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(platform="tpu")])
    ((name, implementation, why),) = _implementation.explain(["paged_lion8bit"])
    assert implementation == "none" and "a step for TPUs" in why and "`lion8bit`" in why
