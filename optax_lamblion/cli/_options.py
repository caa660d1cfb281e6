"""What each command takes.

Their fields are the options, with underscores for hyphens, on the command line and in the file of
`--config`. `None` means that an option was not given.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

Flag = Annotated[bool, Parameter(show_default=False)]
_TRAINING = Group("Training step", help="Any of these shows what a device holds during a step.")


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of `train`.

    Attributes:
      data: What to learn: bytes of text, or handwritten digits.
      steps: Training steps of each optimizer.
      batch_size: Examples in a step.
      seed: Decides the initial parameters and the batches.
      text: Learn this file instead of Python's standard library.
      prompt: What samples of generated text start with: `def ` for Python's library, and held-out
        text for a file of your own.
      seq_len: Bytes of context (text only).
      width: Features of the transformer (text only).
      layers: Blocks of the transformer (text only).
      heads: Attention heads of the transformer (text only).
      optimizers: Optimizers to compare, joined by commas. `optax-lamblion info` lists them;
        optax.lion, optax.lamb and optax.adamw are Optax's own.
      dtype: With a 16-bit dtype, each optimizer trains with float32 parameters and with parameters
        of this dtype. Nothing else differs.
      param_rounding: How 16-bit parameters are written: nearest, stochastic, compensated, joined by
        commas. Each gets a training of its own. Optax's optimizers only round to nearest.
      learning_rate: Learning rate of all optimizers, or of one as in lion8bit=3e-4. Join several
        with commas.
      weight_decay: Weight decay of all optimizers, or of one as in lion8bit=0.1. Join several with
        commas.
      output: Folder for the run, which must not hold one already.
      resume: Continue the run in this folder, which was stopped or killed. Without a folder,
        continue the newest unfinished run. Other options are not needed.
      quiet: Print the final table only.
    """

    data: Annotated[Literal["text", "digits"] | None, Parameter(show_default="text")] = None
    steps: Annotated[int | None, Parameter(show_default="300; digits: 200")] = None
    batch_size: Annotated[int | None, Parameter(show_default="16; digits: 64")] = None
    seed: Annotated[int | None, Parameter(show_default="0")] = None
    text: Path | None = None
    prompt: str | None = None
    seq_len: Annotated[int | None, Parameter(show_default="64")] = None
    width: Annotated[int | None, Parameter(show_default="128")] = None
    layers: Annotated[int | None, Parameter(show_default="2")] = None
    heads: Annotated[int | None, Parameter(show_default="4")] = None
    optimizers: Annotated[
        tuple[str, ...] | None,
        Parameter(
            metavar="A,B",
            show_default="Optax's Lion, LAMB and AdamW, each next to its 8-bit relative; with a "
            "16-bit dtype: lion8bit",
        ),
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, Parameter(show_default="float32")
    ] = None
    param_rounding: Annotated[
        tuple[str, ...] | None, Parameter(metavar="A,B", show_default="all three")
    ] = None
    learning_rate: Annotated[
        tuple[str, ...] | None,
        Parameter(metavar="[NAME=]X", show_default="tuned for each optimizer"),
    ] = None
    weight_decay: Annotated[
        tuple[str, ...] | None,
        Parameter(metavar="[NAME=]X", show_default="tuned for each optimizer"),
    ] = None
    output: Annotated[
        Path | None, Parameter(metavar="DIR", show_default="optax-lamblion-runs/DATA-DATE-TIME")
    ] = None
    # A list of one path or none, for an option that works with and without a value.
    resume: Annotated[list[Path] | None, Parameter(consume_multiple=(0, 1), metavar="[DIR]")] = None
    quiet: Flag = False


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """Options of `memory`.

    Attributes:
      model: A known name such as llama-8b (`--list` shows them), or the path of a Hugging Face
        config.json, of a .safetensors file or its index, or of a folder with one of them. Only
        shapes are read.
      params: Number of parameters, for any other model: 7e9, 7B or 124_439_808.
      list: List the known names, their parameters, and the model_types that a config can have.
      optimizer: Show this optimizer only. Can be given more than once.
      dtype: Dtype of the parameters.
      param_rounding: How 16-bit parameters are written; compensated keeps one more byte for each.
      json: Print JSON, in bytes, instead of tables in GiB.
      training: Show what a device holds during a training step.
      grad_dtype: Dtype of the gradients.
      master: Step a float32 copy of the parameters, next to those in `--dtype`.
      devices: Shard everything evenly across this many devices.
      device_memory: Show what fits on a device with this much memory, as `nvidia-smi` reports it:
        24GiB, 81559MiB or 80GB. If nothing fits, show what would.
      memory_fraction: Fraction of a GPU's memory that JAX gives a program.
      platform: Whose compiler to estimate the temporary memory of a step for.
    """

    model: Annotated[str | None, Parameter(metavar="NAME|PATH")] = None
    params: Annotated[str | None, Parameter(metavar="N")] = None
    list: Flag = False
    optimizer: Annotated[tuple[str, ...], Parameter(metavar="NAME", show_default="all")] = ()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    param_rounding: Annotated[
        Literal["nearest", "stochastic", "compensated"] | None, Parameter(show_default="nearest")
    ] = None
    json: Flag = False
    training: Annotated[Flag, Parameter(group=_TRAINING)] = False
    grad_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(group=_TRAINING, show_default="that of the parameters"),
    ] = None
    master: Annotated[Flag, Parameter(group=_TRAINING)] = False
    devices: Annotated[int | None, Parameter(group=_TRAINING, show_default="1")] = None
    device_memory: Annotated[str | None, Parameter(group=_TRAINING, metavar="SIZE")] = None
    memory_fraction: Annotated[
        str | None,
        Parameter(
            group=_TRAINING,
            metavar="X",
            show_default="what XLA_CLIENT_MEM_FRACTION says, or 0.75",
        ),
    ] = None
    platform: Annotated[
        Literal["gpu", "cpu"] | None, Parameter(group=_TRAINING, show_default="gpu")
    ] = None


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `convert`.

    Attributes:
      names: A file with the paths of the parameters, such as encoder/kernel, one per line or as a
        JSON list, in the order in which bitsandbytes' optimizer got them.
      transpose: Matrices that are stored the other way round here, such as '*kernel'. Can be given
        more than once.
      key: Where in the file the optimizer is, such as optimizer.
      order: Order of slots that are not contiguous.
      optimizer: The optimizer that continues with the state. Adam continues as adamw.
      bits: Bits of the state that is written.
      codec: Codec of an 8-bit state that is written.
      block_size: Elements that share a scale.
      json: Print JSON instead of a table.
    """

    names: Annotated[Path | None, Parameter(metavar="FILE")] = None
    transpose: Annotated[tuple[str, ...], Parameter(metavar="PATTERN", show_default=False)] = ()
    key: str | None = None
    order: Annotated[Literal["storage", "logical"] | None, Parameter(show_default="detected")] = (
        None
    )
    optimizer: Annotated[
        Literal["lion", "lamb", "adamw"] | None, Parameter(show_default="detected")
    ] = None
    bits: Annotated[Literal[8, 32] | None, Parameter(show_default="as in the source")] = None
    codec: Literal["power", "dynamic", "linear"] = "dynamic"
    block_size: int = 256
    json: Flag = False


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `bench`.

    Attributes:
      shape: Shape of the parameter, as ROWSxCOLS.
      model: The parameters of a model instead, or another list of shapes: leaf-16m, gpt2-124m,
        llama-8b-layer, resnet50, lora-r8, lora-r16, tiny-1000, or a name of `memory --list`.
      dtype: Dtype of the parameters and of their gradients.
      repeats: Turns of each optimizer. In one, it takes a step, or several if they are short.
      json: Print JSON instead of a table.
    """

    shape: Annotated[str | None, Parameter(show_default="4096x4096")] = None
    model: Annotated[str | None, Parameter(metavar="NAME")] = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    repeats: int = 20
    json: Flag = False
