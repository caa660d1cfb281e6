"""One point of `sweeps.on_devices`, in a process that has so many devices.

XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m benchmarks.growth.devices 4 22
"""

import json
import sys

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_lamblion.demo import contest, timing, workloads


class Sharded(contest.Arrays):
    """Arrays that are divided along their first axis."""

    def __init__(self, shapes, dtype, mesh):
        super().__init__(shapes, dtype)
        self._sharding = NamedSharding(mesh, PartitionSpec("x"))
        self.gradients = jax.device_put(self.gradients, self._sharding)

    def carry(self, init):
        """See `contest.Arrays`."""
        params = jax.device_put(timing.parameters(self.shapes, self.dtype), self._sharding)
        return params, init(params)


def findings(count, log2):
    """What is measured of every family."""
    mesh = jax.make_mesh((count,), ("x",), axis_types=(AxisType.Explicit,))
    found = []
    with jax.set_mesh(mesh):
        arrays = Sharded(workloads.leaf(log2), "float32", mesh)
        for family in contest.FAMILIES:
            entries = contest.of_family(family, arrays, (8,), (contest.APPLY_FUSED,))
            times = timing.take_turns([entry.contestant for entry in entries], seconds=1.0)
            found += contest.findings(entries, times, arrays.elements)
    return found


if __name__ == "__main__":
    print(json.dumps(findings(int(sys.argv[1]), int(sys.argv[2]))))
