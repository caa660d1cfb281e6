"""What the model of throughput makes of Triton's kernels in bfloat16, cut in several ways.

    .venv-deviceless/bin/python -m tests.triton.modelled [--gpus h200] [--per-thread 8 16 32]

Prints a table in Markdown; a kernel takes some seconds.
"""

import argparse
import os
import re

SIZE = {"bfloat16": 2, "uint8": 1, "int8": 1, "float32": 4}


def modelled(name, gpu, per_thread):
    """`throughput.model.Modelled` of a kernel of a step."""
    from tests.deviceless import sass
    from tests.deviceless.throughput import model
    from tests.deviceless.throughput.gpus import GPUS
    from tests.deviceless.throughput.kernels import STEPS
    from tests.triton import compiling, steps

    rule, emit = STEPS[name]
    kernel = steps.of_step(rule, "bf16", emit=emit, per_thread=per_thread)[name]
    major, minor = GPUS[gpu].target.capability
    facts = compiling.facts(kernel, major * 10 + minor)
    made = model.Kernel(
        name=name,
        threads=compiling.THREADS,
        per_thread=compiling.elements_of_a_thread(kernel),
        registers=facts["registers"],
        spilled=facts["spilled_bytes"],
        way=[_as_of_mosaic(x) for x in sass.scheduled(facts["way"])],
        bytes=_moved(kernel),
    )
    return model.Modelled(made, GPUS[gpu])


def _as_of_mosaic(instruction):
    """An instruction with the name by which the model knows what it reads and writes.

    Mosaic's accesses to tiles are generic ones. Triton's are known by their width: in bfloat16
    codes come by 8 bytes and numbers by 16, and what belongs to a block or a step by 4.
    """
    if instruction.name in ("LDG", "STG") and instruction.width >= 8:
        return instruction._replace(opcode=instruction.opcode.replace("G.", ".", 1))
    return instruction


def _moved(kernel):
    """Bytes of an element that are read and written on the way of a tile with nothing to skip."""
    moved = 0.0
    for pointer in kernel.pointers:
        if pointer.kind == "small" or (kernel.name.endswith("_apply") and pointer.name == "g"):
            continue
        times = sum(
            re.search(rf"tl\.{access}\({pointer.name} \+", kernel.source) is not None
            for access in ("load", "store")
        )
        share = 1 if pointer.kind == "elements" else 1 / kernel.cut.block
        moved += times * SIZE[str(pointer.dtype)] * share
    return moved


def main(arguments=None):
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    os.environ["JAX_PLATFORMS"] = "cpu"
    from tests.deviceless.throughput.gpus import GPUS
    from tests.deviceless.throughput.kernels import PER_THREAD, STEPS

    parser.add_argument("--gpus", nargs="+", choices=GPUS, default=list(GPUS))
    parser.add_argument("--kernels", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--per-thread", nargs="+", type=int, default=PER_THREAD)
    args = parser.parse_args(arguments)
    print("| kernel | GPU | elements a thread | instructions | registers | of floor, modelled |")
    print("|---|---|---:|---:|---:|---:|")
    for name in args.kernels:
        for gpu in args.gpus:
            for per_thread in args.per_thread:
                of = modelled(name, gpu, per_thread)
                numbers = f"{of.kernel.instructions:.1f} | {of.kernel.registers}"
                time = f"{of.simulated() / of.floor:.2f}"
                print(f"| `{name}` | {gpu} | {per_thread} | {numbers} | {time} |", flush=True)


if __name__ == "__main__":
    main()
