"""What a step costs for whole models, by what was compiled: rows of a table.

Of a model with many tensors and equal layers one layer is compiled and two, and their difference is
added for each further layer. XLA joins some small kernels of different layers, so the number of
kernels is then an estimate, while bytes hardly change.
"""

import sys

from tests.deviceless import cases, models, worker
from tests.deviceless.compiling import bytes_moved

TARGET = "h200"
BANDWIDTH = 4.3e12
MANY = 200  # tensors
SHOWN = {"gpt2-124m": "GPT-2 124M", "llama-8b": "Llama-like 8B", "resnet50": "ResNet-50"}
"""Those of docs/kernels.md, by what they are called there."""
HEADER = """\
| model | optimizer | step | kernels | bytes per parameter | floor, ms |
|---|---|---|---:|---:|---:|"""


def table(names, whole=False):
    """The rows of some models, with their header. `whole` compiles every layer."""
    rows = [HEADER]
    for model in names:
        by_layer = models.leaves(model) > MANY and not whole
        rows += _rows(model, models.layers(model) if by_layer else None)
    return "\n".join(rows)


def _rows(model, layers):
    """Rows of one model. `layers` is None where it is compiled as a whole."""
    parts = (None,) if layers is None else (1, 2)
    wanted = [(optimizer, mode[0]) for optimizer in models.OPTIMIZERS for mode in cases.MODES]
    names = [models.case_name(model, part, *x) for x in wanted for part in parts]
    print(f"compiling {len(names)} steps of {model}", file=sys.stderr)
    costs = {name: _cost(result) for name, result in worker.results(TARGET, names).items()}
    rows = []
    for optimizer, mode in wanted:
        of = [costs[models.case_name(model, part, optimizer, mode)] for part in parts]
        kernels, moved = (
            x[0] if layers is None else x[0] + (layers - 1) * (x[1] - x[0])
            for x in zip(*of, strict=True)
        )
        per_parameter = moved / models.parameters(model)
        title = f"{SHOWN.get(model, model)}, {models.leaves(model)} tensors"
        about = "" if layers is None else "about "
        rows.append(
            f"| {title} | {optimizer} | {mode} | {about}{kernels} | {per_parameter:.2f} "
            f"| {moved / BANDWIDTH * 1e3:.2f} |"
        )
    return rows


def _cost(result):
    """`(kernels, bytes)` of a step."""
    return len(result["facts"]["launches"]), bytes_moved(result["facts"])
