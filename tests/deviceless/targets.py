"""GPUs to compile for, as the description of a GPU that XLA takes in place of one.

XLA and Mosaic need the compute capability; the sizes steer XLA's choices (tilings, unrolling).
They are the vendor's: the datasheets, and the table of technical specifications per compute
capability in the CUDA programming guide.
"""

import dataclasses

import jax
import numpy as np
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Target:
    """What is particular to one kind of GPU. Sizes are bytes."""

    product: str
    capability: tuple[int, int]
    multiprocessors: int
    clock_ghz: float
    bandwidth: float
    """Bytes per second."""
    memory: int
    l2_cache: int
    shared_per_multiprocessor: int
    lanes: int = 128
    """Float32 units of a multiprocessor."""
    threads_per_multiprocessor: int = 2048

    @property
    def accelerated(self):
        """Whether its PTX needs the architecture's own instructions (`sm_90a`): from 9.0 on."""
        return self.capability >= (9, 0)

    @property
    def architecture(self):
        """The name that PTX and its assembler use."""
        return f"sm_{''.join(map(str, self.capability))}{'a' if self.accelerated else ''}"

    def config(self):
        """The description as XLA reads it: a text protocol buffer."""
        major, minor = self.capability
        numbers = {
            "threads_per_warp": 32,
            "threads_per_block_limit": 1024,
            "threads_per_core_limit": self.threads_per_multiprocessor,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "registers_per_block_limit": 2**16,
            "registers_per_core_limit": 2**16,
            "shared_memory_per_block": 48 * KIB,
            # The hardware keeps 1 KiB of each block's for itself.
            "shared_memory_per_block_optin": self.shared_per_multiprocessor - KIB,
            "shared_memory_per_core": self.shared_per_multiprocessor,
            "core_count": self.multiprocessors,
            "fpus_per_core": self.lanes,
            "clock_rate_ghz": self.clock_ghz,
            "memory_bandwidth": int(self.bandwidth),
            "l2_cache_size": self.l2_cache,
            "device_memory_size": self.memory,
        }
        extension = "ACCELERATED_FEATURES" if self.accelerated else "NONE"
        capability = f"major: {major} minor: {minor} feature_extension: {extension}"
        info = "\n".join(f"  {key}: {value}" for key, value in numbers.items())
        return (
            f"gpu_device_info {{\n{info}\n  cuda_compute_capability {{ {capability} }}\n}}\n"
            f'platform_name: "CUDA"\ndevice_description_str: "{self.product}"\n'
        )


KIB, MIB, GIB = 2**10, 2**20, 2**30
TARGETS = {
    "a100": Target(
        "NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        multiprocessors=108,
        clock_ghz=1.41,
        bandwidth=2.039e12,
        memory=80 * GIB,
        l2_cache=40 * MIB,
        shared_per_multiprocessor=164 * KIB,
        lanes=64,
    ),
    "l40s": Target(
        "NVIDIA L40S",
        capability=(8, 9),
        multiprocessors=142,
        clock_ghz=2.52,
        bandwidth=0.864e12,
        memory=48 * GIB,
        l2_cache=96 * MIB,
        shared_per_multiprocessor=100 * KIB,
        threads_per_multiprocessor=1536,
    ),
    "h200": Target(
        "NVIDIA H200",
        capability=(9, 0),
        multiprocessors=132,
        clock_ghz=1.98,
        bandwidth=4.8e12,
        memory=141 * 10**9,
        l2_cache=50 * MIB,
        shared_per_multiprocessor=228 * KIB,
    ),
    "b200": Target(
        "NVIDIA B200",
        capability=(10, 0),
        multiprocessors=148,
        clock_ghz=1.965,
        bandwidth=8e12,
        memory=180 * 10**9,
        l2_cache=126 * MIB,
        shared_per_multiprocessor=228 * KIB,
    ),
}


def make_mesh(target, devices=1):
    """A mesh of compile-only devices with one axis, `"d"`.

    One capability per process: for a second one XLA would reuse the assembler settings of the
    first, and fail.
    """
    topology = topologies.get_topology_desc(
        "", platform="cuda", target_config=target.config(), topology=f"1x1x{devices}"
    )
    return jax.sharding.Mesh(np.array(topology.devices), ("d",))
