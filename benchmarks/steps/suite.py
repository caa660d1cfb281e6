"""What is timed: which optimizers take turns on which list of shapes."""

import dataclasses

from optax_lamblion.demo import contest, timing, workloads


@dataclasses.dataclass(frozen=True)
class Row:
    """A list of shapes, and who steps on it.

    - `workload` is a name of `workloads.WORKLOADS`.
    - `everything` has both ways and precisions of ours, and other libraries; else there are Optax
      and those with 8 bits, by `apply_fused`.
    - `seconds` are for the turns of a family: at least 5 turns, whatever they take.
    """

    workload: str
    dtype: str = "float32"
    everything: bool = False
    seconds: float = 4.0
    families: tuple[str, ...] = contest.FAMILIES

    @property
    def bits(self):
        """The precisions of ours."""
        return (32, 8) if self.everything else (8,)

    @property
    def ways(self):
        """The ways of ours."""
        return timing.WAYS if self.everything else (contest.APPLY_FUSED,)

    def shapes(self):
        """The shapes by name."""
        return {**workloads.WORKLOADS, **QUICK_WORKLOADS}[self.workload]()


# What matters most comes first. The layer is in bfloat16, in which such a model is trained, and in
# float32 its arrays would not fit into 16 GiB. LAMB is made for whole models, and takes long
# to compile.
SUITE = (
    Row("leaf-16m", everything=True, seconds=8.0),
    Row("leaf-16m", "bfloat16", everything=True, seconds=8.0),
    Row("gpt2-124m"),
    Row("llama-8b-layer", "bfloat16"),
    Row("resnet50"),
    Row("lora-r8"),
    Row("lora-r16", families=("lion", "adamw")),
    Row("tiny-1000"),
)
QUICK_WORKLOADS = {
    "leaf-64k": lambda: workloads.leaf(16),
    "tiny-10": lambda: workloads.tiny_leaves(10),
}
"""To try out the command."""
QUICK = (Row("leaf-64k", everything=True, seconds=0.1), Row("tiny-10", "bfloat16", seconds=0.1))
