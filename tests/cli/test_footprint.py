"""What `memory` claims about a training step, against real arrays and compiled programs."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_lamblion import StateOptions, apply_fused, state_report, state_sharding
from optax_lamblion.cli import _footprint
from optax_lamblion.cli._footprint import Setting
from optax_lamblion.demo import shapes
from optax_lamblion.demo.optimizers import OPTIMIZERS

MODEL = {"a": (512, 2048), "b": (1024, 1024), "c": (2048, 512), "small": (512,)}
COUNT = 3 * 2**20 + 512
NAMES = [name for name in OPTIMIZERS if name.startswith("optax.") or name.endswith("bit")]
PAGED = [name for name in NAMES if name.startswith("paged_")]
RESIDENT = [name for name in NAMES if name not in PAGED]
# Bytes that XLA takes for scalars and small leaves.
SMALL = 2**14


def claim(name, model=MODEL, **how):
    row, setting = OPTIMIZERS[name], Setting(model, **how)
    return _footprint.footprint(row, setting, _footprint.state(row, setting))


def optimizer(name, rounding="nearest"):
    row = OPTIMIZERS[name]
    more = {"options": StateOptions(param_rounding=rounding)} if row.ours else {}
    return row.factory(row.learning_rate, weight_decay=row.weight_decay, **more)


@functools.cache
def compiled(name, dtype="float32", grad_dtype=None, rounding="nearest"):
    """Bytes of arguments and of temporary memory of a donated step, as compiled for this CPU."""
    tx = optimizer(name, rounding)

    def step(params, grads, state):
        if OPTIMIZERS[name].ours:
            return apply_fused(tx, params, grads, state)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = shapes.as_structs(MODEL, dtype)
    grads = shapes.as_structs(MODEL, grad_dtype or dtype)
    state = jax.eval_shape(tx.init, params)
    program = jax.jit(step, donate_argnums=(0, 2)).lower(params, grads, state).compile()
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RESIDENT)
def test_a_compiled_step_on_a_cpu_needs_what_is_claimed(name, dtype):
    found = claim(name, dtype=dtype, grad_dtype=dtype, platform="cpu")
    arguments, temporary = compiled(name, dtype)
    assert found.parameter_bytes + found.gradient_bytes + found.state_bytes == arguments
    # An estimate: LAMB has more or fewer partial sums, up to 0.27 of 4.27 bytes.
    assert found.step_bytes == pytest.approx(temporary, rel=0.07, abs=SMALL)
    assert found.total_bytes == pytest.approx(arguments + temporary, rel=0.03)


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
@pytest.mark.parametrize("name", [name for name in RESIDENT if OPTIMIZERS[name].ours])
def test_rounding_parameters_needs_a_byte_if_it_is_compensated(name, rounding):
    nearest, found = (
        claim(name, dtype="bfloat16", param_rounding=x) for x in ("nearest", rounding)
    )
    # Leaves of fewer than 4096 elements have residuals, too.
    assert found.state_bytes - nearest.state_bytes == (COUNT if rounding == "compensated" else 0)
    found = claim(name, dtype="bfloat16", param_rounding=rounding, platform="cpu")
    arguments, temporary = compiled(name, "bfloat16", None, rounding)
    assert found.parameter_bytes + found.gradient_bytes + found.state_bytes == arguments
    assert found.step_bytes == pytest.approx(temporary, rel=0.07, abs=SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_of_the_whole_model(name):
    """`state` traces one parameter of each shape, and the real `init` all of them."""
    model = MODEL | {f"{key} again": shape for key, shape in MODEL.items()} | {"scalar": ()}
    row = OPTIMIZERS[name]
    found = _footprint.state(row, Setting(model))
    kinds = state_report(jax.eval_shape(optimizer(name).init, shapes.as_structs(model)))
    assert found.device_bytes == kinds.by_memory_kind.pop("device")
    assert found.nbytes == kinds.nbytes
    assert bool(found.host_bytes) == name.startswith("paged_")


@pytest.mark.parametrize("name", ["lion8bit", "optax.lion"])
def test_gradients_may_have_another_dtype(name):
    found = claim(name, grad_dtype="bfloat16", platform="cpu")
    assert found.gradient_bytes == 2 * COUNT
    assert found.total_bytes == pytest.approx(sum(compiled(name, "float32", "bfloat16")), abs=SMALL)


@pytest.mark.parametrize("name", PAGED)
def test_a_paged_step_on_a_cpu_needs_no_more_than_is_claimed(name):
    found = claim(name, platform="cpu")
    arguments, temporary = compiled(name)
    # State in host memory is in the same memory there.
    assert found.parameter_bytes + found.gradient_bytes + found.state_bytes == arguments
    assert found.host_state_bytes == 0
    assert temporary <= found.step_bytes + SMALL


@pytest.mark.parametrize("name", PAGED)
def test_on_a_gpu_paged_state_is_in_host_memory_but_for_pages(name):
    options = StateOptions()
    pages = (options.pages_in_flight + 1) * options.page_bytes
    small, large = claim(name), claim(name, {"w": (2**15, 2**15)})
    state = jax.eval_shape(optimizer(name).init, shapes.as_structs({"w": (2**15, 2**15)}))
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert large.state_bytes + large.host_state_bytes == held
    assert large.state_bytes < 100
    assert large.step_bytes == pages
    # Float32 state comes and goes in two arrays.
    assert small.step_bytes == small.host_state_bytes * (1 if "8bit" in name else 2) < pages


def test_the_step_of_kernels_needs_nothing_where_optax_keeps_the_largest_leaf():
    model = {f"layer{i}": (1024, 1024) for i in range(9)} | {"embed": (5000, 1024)}
    for dtype, itemsize in [("float32", 4), ("bfloat16", 2)]:
        assert claim("lion8bit", model, dtype=dtype).step_bytes == 0
        assert claim("lamb8bit", model, dtype=dtype).step_bytes == 0
        assert claim("adamw8bit", model, dtype=dtype).step_bytes == 0
        assert claim("optax.lamb", model, dtype=dtype).step_bytes == itemsize * 5000 * 1024


def test_a_master_copy_is_what_is_stepped():
    narrow = claim("optax.lion", dtype="bfloat16", grad_dtype="bfloat16")
    found = claim("optax.lion", dtype="bfloat16", grad_dtype="bfloat16", master=True)
    assert (narrow.master_bytes, found.master_bytes) == (0, 4 * COUNT)
    assert found.parameter_bytes == narrow.parameter_bytes == 2 * COUNT
    # The momentum has the dtype of what is stepped.
    assert found.state_bytes == pytest.approx(2 * narrow.state_bytes, abs=4)
    assert found.total_bytes == sum([2 * COUNT, 4 * COUNT, 2 * COUNT, found.state_bytes])


@pytest.mark.parametrize(
    "name", ["lion8bit", "lamb8bit", "adamw8bit", "optax.adamw", "paged_lion8bit"]
)
def test_every_device_has_its_part(name):
    tx, axes = optimizer(name), PartitionSpec("d")
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    params = {k: jnp.zeros(shape, device=NamedSharding(mesh, axes)) for k, shape in MODEL.items()}
    state = jax.jit(tx.init, out_shardings=state_sharding(tx, params))(params)
    found = claim(name, devices=8)

    def on_one_device(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    assert found.parameter_bytes == on_one_device(params)
    # Scalars are whole everywhere, and so is what stands for the scales of small leaves.
    assert found.state_bytes + found.host_state_bytes == pytest.approx(on_one_device(state), abs=32)
    assert found.gradient_bytes == found.parameter_bytes
    assert claim("optax.lamb", devices=8).step_bytes == 4 * 2**20 // 8
