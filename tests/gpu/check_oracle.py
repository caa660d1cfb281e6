"""The optimizers, with their kernels, make the steps that the float64 oracles say.

The cases and the judges are those of `tests.kernels.test_rules_against_oracle`, which runs them in
the interpreter.
"""

import contextlib
import dataclasses
import functools

from tests.kernels import test_rules_against_oracle as against_oracle
from tests.kernels.interpreted import interpreted
from tests.kernels.step_judge import judge_adam, judge_lion


def checks(optimizer, run):
    """`(name, function)` for each case of an optimizer and each implementation."""
    names = [name for name in against_oracle.KERNEL_CASES if name.startswith(optimizer)]
    for i, name in enumerate(names[:: 4 if run.quick else 1]):
        if run.tiny and i > 0:
            return
        yield f"{name} mosaic", functools.partial(_check, name, "mosaic", run)
    # Here XLA compiles for the GPU, too, which no other test judges.
    for name in names[: 1 if run.quick else 5]:
        yield f"{name} xla", functools.partial(_check, name, "xla", run)


lion = functools.partial(checks, "lion8bit")
adamw = functools.partial(checks, "adamw8bit")
lamb = functools.partial(checks, "lamb8bit")


def _check(name, implementation, run):
    case = against_oracle.CASES[name]
    by_kernel = implementation == "mosaic"
    options = case.arguments["options"]
    if not (by_kernel and run.interpret):  # where the interpreter takes None for the kernel
        options = dataclasses.replace(options, implementation=implementation)
    case = dataclasses.replace(case, arguments=case.arguments | dict(options=options))
    with interpreted() if by_kernel and run.interpret else contextlib.nullcontext():
        observed = against_oracle._observe(case)
    failures = {}
    for leaf, seen in observed.items():
        hyper = case.hyper
        if by_kernel:
            hyper = dataclasses.replace(hyper, **against_oracle.KERNEL)
        if leaf == "undecayed_4d":
            hyper = dataclasses.replace(hyper, weight_decay=0.0)
        judge = judge_lion if name.startswith("lion") else judge_adam
        try:
            judge(seen, hyper)
        except AssertionError as error:  # the other leaves have their own story
            failures[leaf] = str(error)
    assert not failures, failures
    return {"leaves": len(observed)}
