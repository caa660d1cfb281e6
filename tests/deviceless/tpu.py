"""What XLA makes of steps on a TPU that is not there: its own estimate of their time, and memory.

    python -m tests.deviceless.tpu

Needs `libtpu` (`pip install libtpu`), and minutes. Nothing here is a measured time.
"""

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
import optax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import optax_lamblion as ol

SHAPE = (4096, 4096)
STEPS = {
    "optax.lion": optax.lion,
    "lion8bit": ol.lion8bit,
    "lion32bit": ol.lion32bit,
    "optax.lamb": optax.lamb,
    "lamb8bit": ol.lamb8bit,
    "optax.adamw": optax.adamw,
    "adamw8bit": ol.adamw8bit,
    "paged_lion32bit": ol.paged_lion32bit,
    "paged_lion8bit": ol.paged_lion8bit,
}


def main():
    device = topologies.get_topology_desc("v5e:2x2", "tpu").devices[0]
    print("| step, v5e, 4096 x 4096 in bfloat16 | ms, estimated | temporary bytes a parameter |")
    print("|---|---:|---:|")
    for name, optimizer in STEPS.items():
        try:
            compiled = compile_step(optimizer(1e-4, weight_decay=0.1), device)
        except Exception as error:
            print(f"| {name} | {str(error).splitlines()[0][:80]} | |", flush=True)
            continue
        # XLA counts an instruction whose cost it does not know as minus one second.
        estimate = compiled.cost_analysis()["optimal_seconds"] % 1
        temporary = compiled.memory_analysis().temp_size_in_bytes
        size = SHAPE[0] * SHAPE[1]
        print(f"| {name} | {1e3 * estimate:.3f} | {temporary / size:.2f} |", flush=True)


def compile_step(tx, device):
    """A step of one leaf under `apply_fused`, with donated state."""

    def step(p, g, state):
        return ol.apply_fused(tx, p, g, state)

    def placed(x):
        sharding = SingleDeviceSharding(device, memory_kind=kind_of(x))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def kind_of(x):
        return "pinned_host" if "host" in str(jax.typeof(x).memory_space).lower() else "device"

    p = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16)
    arguments = jax.tree.map(placed, (p, p, jax.eval_shape(tx.init, p)))
    return jax.jit(step, donate_argnums=(0, 2)).lower(*arguments).compile()


if __name__ == "__main__":
    main()
