"""Which code runs a step: on which device, what it says where it cannot, what it leaves to XLA."""

import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

import pallas_kernels
from optax_lamblion import StateOptions, apply_fused, lamb8bit, lion8bit, lion32bit
from optax_lamblion._implementation import explain
from pallas_kernels import dispatch
from pallas_kernels.triton import installed
from tests.kernels.interpreted import KERNELS
from tests.triton.compiling import kernels

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
        (lambda o: lamb8bit(1e-3, options=o(block_size=2048)), "1024, not for 2048"),
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


ROWS = itertools.count(66)  # of leaves: what was traced for other GPUs is not traced anew


def gpu(capability, platform="cuda"):
    return types.SimpleNamespace(
        compute_capability=capability, device_kind=f"GPU {capability}", platform=platform
    )


A100, H200, T4 = gpu("8.0"), gpu("9.0"), gpu("7.5")
MI300 = gpu("gfx942", "rocm")
NOT_INSTALLED = f"jax-triton is not installed ({installed.COMMAND})"


@pytest.fixture
def machine(monkeypatch):
    """A function that makes JAX see other GPUs, and Triton be there or not."""

    def pretend(*gpus, triton=True):
        def devices(platform):
            return [x for x in gpus if x.platform == platform]

        monkeypatch.setattr(dispatch, "devices", devices)
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if gpus else "cpu")
        monkeypatch.setattr(installed, "why_not", lambda: None if triton else NOT_INSTALLED)

    return pretend


def launched(tx, block_size=256):
    """The implementation of a step here, by the kernels in its trace."""
    params = {"w": jnp.ones((next(ROWS), block_size))}
    by_triton = kernels(lambda p: tx.update(p, tx.init(p), p), params)
    text = str(jax.make_jaxpr(lambda p: tx.update(p, tx.init(p), p))(params))
    return "triton" if by_triton else "mosaic" if "lion_signs" in text else "xla"


FASTEST = [
    ([H200], 256, True, "mosaic", ""),
    ([H200], 256, False, "mosaic", ""),
    ([A100, A100], 1024, True, "mosaic", ""),
    ([H200], 2048, True, "triton", ""),
    ([H200], 4096, True, "triton", ""),
    ([H200], 4096, False, "xla", ""),
    ([T4], 256, True, "triton", "not mosaic: it needs compute capability 8.0"),
    ([T4], 256, False, "xla", f"not triton: {NOT_INSTALLED}"),
    ([H200, T4], 256, True, "triton", "not mosaic: ...GPU 7.5 has 7.5"),
    ([gpu("7.0")], 256, True, "xla", "not triton: it needs compute capability 7.5"),
    (
        [MI300],
        256,
        True,
        "triton",
        "GPU gfx942 is a gfx942, ...; not mosaic: it needs an NVIDIA GPU",
    ),
    ([MI300], 256, False, "xla", f"not triton: {NOT_INSTALLED}"),
    ([], 256, True, "xla", "the kernels are for GPUs, and this is a CPU"),
]


@pytest.mark.parametrize("gpus, block_size, triton, expected, why", FASTEST)
def test_none_takes_the_fastest_that_the_gpus_at_hand_run(
    machine, gpus, block_size, triton, expected, why
):
    machine(*gpus, triton=triton)
    tx = lion8bit(1e-3, options=StateOptions(block_size=block_size))
    assert launched(tx, block_size) == expected
    if block_size == 256:  # which `explain` speaks of
        ((_, implementation, reason),) = explain(["lion8bit"])
        assert implementation == expected
        assert all(words in reason for words in why.split("..."))
    assert explain(["lion32bit"])[0][1] == "xla"


@pytest.mark.parametrize(
    "gpus, name, why",
    [
        ([T4], "mosaic", "needs compute capability 8.0, and GPU 7.5 has 7.5"),
        ([gpu("7.0")], "triton", "needs compute capability 7.5, and GPU 7.0 has 7.0"),
    ],
)
def test_an_old_gpu_cannot_run_kernels_by_name(machine, gpus, name, why):
    machine(*gpus)
    params = {"w": jnp.ones((next(ROWS), 256))}
    tx = with_implementation(lion8bit, name)
    with pytest.raises(ValueError, match=f'="{name}"` cannot run this: .*{why}.*"xla"'):
        tx.update(params, tx.init(params), params)


def test_a_name_takes_no_other_kernels(machine):
    machine(H200)
    for name in dispatch.IMPLEMENTATIONS:
        assert launched(with_implementation(lion8bit, name)) == name


@pytest.mark.parametrize(
    "gpus, name, needs",
    [([MI300], "mosaic", "an NVIDIA GPU"), ([], "triton", "an NVIDIA or AMD GPU")],
)
def test_a_name_needs_a_platform_of_its_own(machine, gpus, name, needs):
    machine(*gpus)
    tx, params = with_implementation(lion8bit, name), {"w": jnp.ones((next(ROWS), 256))}
    step = jax.jit(lambda p: tx.update(p, tx.init(p), p))
    text = f'="{name}"` needs {needs}, and this step is compiled for cpu'
    with pytest.raises(ValueError, match=text):
        kernels(lambda p: step.lower(p), params)


def test_without_triton_no_optimizer_is_built_for_it(machine):
    machine(H200, triton=False)
    words = re.escape(NOT_INSTALLED)
    with pytest.raises(ValueError, match=f'="triton"` cannot run this optimizer: {words}.*None'):
        with_implementation(lion8bit, "triton")


def test_every_text_that_lists_implementations_has_all():
    with pytest.raises(ValueError) as caught:
        StateOptions(implementation="cuda")
    for text in (str(caught.value), StateOptions.__doc__, pallas_kernels.quantize.__doc__):
        assert [name for name in dispatch.IMPLEMENTATIONS if f'"{name}"' not in text] == []


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
