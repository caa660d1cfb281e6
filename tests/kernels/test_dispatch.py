"""Which code runs a step: on which device, what it says where it cannot, what it leaves to XLA."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from optax_lamblion import StateOptions, apply_fused, lamb8bit, lion8bit, lion32bit
from optax_lamblion._implementation import explain
from pallas_kernels import dispatch
from tests.kernels.interpreted import KERNELS

LARGE = {"w": jnp.ones((64, 256)), "small": jnp.ones(33)}
OURS = pytest.mark.parametrize("make", [lion8bit, lamb8bit])


def with_implementation(make, implementation, **kwargs):
    return make(1e-3, options=StateOptions(implementation=implementation), **kwargs)


def lowered(tx, params, platform, step=None):
    """The program of a step, as compiled for a platform that need not be here."""
    state = tx.init(params)
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        # A function of its own, as JAX keeps what it traced for another mesh.
        traced = jax.jit(lambda *args: (step or tx.update)(*args)).trace(params, state, params)
        return traced.lower(lowering_platforms=(platform,)).as_text(debug_info=True)


def kernels_in(text):
    # As part of a path; rules have functions with such names too.
    return [name for name in KERNELS if re.search(f'[/"]{name}[/"]', text)]


@OURS
def test_none_means_kernels_on_a_gpu_and_xla_elsewhere(make):
    tx = with_implementation(make, None)
    expected = {lion8bit: ["lion_signs"], lamb8bit: ["lamb_moments"]}[make]
    assert kernels_in(lowered(tx, LARGE, "cuda")) == expected
    assert not kernels_in(lowered(tx, LARGE, "cpu"))


@OURS
def test_apply_fused_lets_kernels_write_parameters(make):
    tx = optax.chain(optax.clip_by_global_norm(1.0), with_implementation(make, None))
    text = lowered(tx, LARGE, "cuda", lambda g, s, p: apply_fused(tx, p, g, s))
    expected = {lion8bit: ["lion_step"], lamb8bit: ["lamb_moments", "lamb_apply"]}[make]
    assert kernels_in(text) == expected


@OURS
def test_xla_by_name_takes_no_kernel(make):
    assert not kernels_in(lowered(with_implementation(make, "xla"), LARGE, "cuda"))


@OURS
@pytest.mark.parametrize("implementation", [None, "mosaic"])
def test_small_leaves_and_32_bits_stay_with_xla(make, implementation):
    tx = with_implementation(make, implementation)
    small = {"bias": jnp.ones(4095), "scalar": jnp.ones(())}
    assert not kernels_in(lowered(tx, small, "cuda"))
    updates, _ = tx.update(small, tx.init(small), small)  # and so this runs here
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))
    # Eight bits below a tile: `min_8bit_size` allows it.
    tx = with_implementation(make, implementation, min_8bit_size=0)
    assert not kernels_in(lowered(tx, small, "cuda"))


@OURS
def test_kernels_by_name_raise_where_there_is_no_gpu(make):
    tx = with_implementation(make, "mosaic")
    assert kernels_in(lowered(tx, LARGE, "cuda"))
    with pytest.raises(ValueError, match="needs an NVIDIA GPU, and this .* compiled for cpu"):
        tx.update(LARGE, tx.init(LARGE), LARGE)


@pytest.mark.parametrize(
    "build, why",
    [
        (lambda o: lion32bit(1e-3, options=o()), "8-bit state only"),
        (lambda o: lion8bit(1e-3, block_wise=False, options=o()), "one block per tensor"),
        (lambda o: lamb8bit(1e-3, options=o(block_size=2048)), "not for 2048"),
    ],
)
def test_an_optimizer_without_kernels_cannot_be_built_for_them(build, why):
    def options(**kwargs):
        return StateOptions(implementation="mosaic", **kwargs)

    with pytest.raises(ValueError, match=f'`implementation="mosaic"` cannot run.*{why}.*None'):
        build(options)


def test_a_dtype_without_kernels_is_named():
    with jax.enable_x64(True):
        params = {"w": jnp.ones((64, 256), jnp.float64)}
        tx = with_implementation(lion8bit, "mosaic")
        with pytest.raises(ValueError, match="not for float64"):
            tx.update(params, tx.init(params), params)
        tx = with_implementation(lion8bit, None)
        assert not kernels_in(lowered(tx, params, "cuda"))


def gpu(capability):
    return types.SimpleNamespace(
        compute_capability=capability, device_kind=f"GPU {capability}", platform="gpu"
    )


@pytest.mark.parametrize(
    "gpus, kernels, word",
    [
        ([gpu("9.0")], True, "9.0"),
        ([gpu("7.5")], False, "7.5"),
        ([gpu("8.0")] * 2, True, "8.0"),
    ],
)
def test_none_knows_the_gpus_at_hand(monkeypatch, gpus, kernels, word):
    monkeypatch.setattr(dispatch, "_gpus", lambda: gpus)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rows = 64 + int(10 * float(gpus[0].compute_capability))  # another shape is traced anew
    params = {"w": jnp.ones((rows, 256))}
    assert bool(kernels_in(lowered(with_implementation(lion8bit, None), params, "cuda"))) == kernels
    ((_, implementation, why),) = explain(["lion8bit"])
    assert implementation == ("mosaic" if kernels else "xla") and word in why
    assert explain(["lion32bit"])[0][1] == "xla"


def test_an_old_gpu_cannot_run_kernels_by_name(monkeypatch):
    monkeypatch.setattr(dispatch, "_gpus", lambda: [gpu("7.5")])
    params = {"w": jnp.ones((70, 256))}
    tx = with_implementation(lion8bit, "mosaic")
    with pytest.raises(ValueError, match="compute capability 8.0, and GPU 7.5 has 7.5"):
        tx.update(params, tx.init(params), params)


def test_what_lies_on_several_devices_by_its_type_stays_with_xla():
    mesh = AbstractMesh((2,), ("d",), axis_types=(AxisType.Explicit,))
    with jax.sharding.use_abstract_mesh(mesh):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d", None))
        leaf = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=sharding)
        assert dispatch._is_distributed(leaf)
    assert not dispatch._is_distributed(jnp.ones((64, 256)))


@OURS
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_a_step_can_be_differentiated(make, implementation):
    def moved(learning_rate):
        tx = make(learning_rate, options=StateOptions(implementation=implementation))
        updates, _ = tx.update(LARGE, tx.init(LARGE), LARGE)
        return sum(jnp.sum(x) for x in jax.tree.leaves(updates))

    np.testing.assert_allclose(jax.grad(moved)(0.25), moved(0.25) / 0.25, rtol=1e-5)
