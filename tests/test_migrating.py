"""The tables for those who come from bitsandbytes or Optax are complete, and true."""

import ast
import inspect
import re
from pathlib import Path

import optax
import pytest

import optax_lamblion

TEXT = (Path(__file__).parents[1] / "docs/migrating.md").read_text(encoding="utf-8")

LION = {
    "params": None,
    "lr": 1e-4,
    "betas": (0.9, 0.99),
    "weight_decay": 0,
    "args": None,
    "min_8bit_size": 4096,
    "percentile_clipping": 100,
    "block_wise": True,
}
LAMB = {
    "params": None,
    "lr": 1e-3,
    "bias_correction": True,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0,
    "amsgrad": False,
    "adam_w_mode": True,
    "args": None,
    "min_8bit_size": 4096,
    "percentile_clipping": 100,
    "block_wise": False,
    "max_unorm": 1.0,
}
ADAM = {
    "params": None,
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0,
    "amsgrad": False,
    "optim_bits": 32,
    "args": None,
    "min_8bit_size": 4096,
    "percentile_clipping": 100,
    "block_wise": True,
}
ADAMW = ADAM | {"weight_decay": 1e-2}
BITS, PAGED = {"optim_bits": 32}, {"is_paged": False}

# The signatures of bitsandbytes, as its documentation has them. `params` has no default.
BITSANDBYTES = {
    "Lion": LION | BITS | PAGED,
    "Lion8bit": LION | PAGED,
    "Lion32bit": LION | PAGED,
    "PagedLion": LION | BITS,
    "PagedLion8bit": LION,
    "PagedLion32bit": LION,
    "LAMB": LAMB | BITS,
    "LAMB8bit": LAMB,
    "LAMB32bit": LAMB,
    "Adam": ADAM | PAGED,
    "Adam8bit": ADAM | PAGED,
    "Adam32bit": ADAM | PAGED,
    "PagedAdam": ADAM | PAGED,
    "PagedAdam8bit": ADAM | PAGED,
    "PagedAdam32bit": ADAM | PAGED,
    "AdamW": ADAMW | PAGED,
    "AdamW8bit": ADAMW | PAGED,
    "AdamW32bit": ADAMW | PAGED,
    "PagedAdamW": ADAMW,
    "PagedAdamW8bit": ADAMW,
    "PagedAdamW32bit": ADAMW,
}
ALL = "all"
FAMILIES = {"Lion": "Lion", "LAMB": "LAMB", "Adam": "AdamW", "AdamW": "AdamW"}
"""The table of a family of bitsandbytes, which is called like ours."""


def family(theirs):
    """The family of a class of bitsandbytes."""
    return theirs.removeprefix("Paged").removesuffix("32bit").removesuffix("8bit")


def ours(theirs):
    """Our function for a class of bitsandbytes."""
    paged = "paged_" if theirs.startswith("Paged") else ""
    bits = theirs.removeprefix("Paged").removeprefix(family(theirs))
    return getattr(optax_lamblion, paged + FAMILIES[family(theirs)].lower() + bits)


def table_below(heading):
    """The rows of the first table below a heading of the page, without its head."""
    start = re.search(rf"^#+ {re.escape(heading)}$", TEXT, re.MULTILINE).end()
    table = re.search(r"(?:^\|.*\n)+", TEXT[start:], re.MULTILINE)[0]
    rows = [[x.strip() for x in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table.splitlines()]
    return rows[2:]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def values(cell):
    return [ast.literal_eval(x) for x in code(cell)]


def parameters(function):
    return inspect.signature(function).parameters


def belongs(of, name):
    return of == ALL or name in code(of) or family(name) == of


@pytest.mark.parametrize("theirs", BITSANDBYTES)
def test_every_argument_of_bitsandbytes_is_in_the_table(theirs):
    rows = table_below(FAMILIES[family(theirs)])
    found = {
        name: values(default)[0] if default else None
        for cell, default, of, *_ in rows
        if belongs(of, theirs)
        for name in code(cell)
    }
    assert found == BITSANDBYTES[theirs]


@pytest.mark.parametrize("theirs", BITSANDBYTES)
def test_every_argument_beside_them_is_ours_and_has_that_default(theirs):
    known = parameters(ours(theirs))
    for _, _, of, here, default, _ in table_below(FAMILIES[family(theirs)]):
        if default and (not of or belongs(of, theirs)):
            assert values(default) == [known[name].default for name in code(here)]


@pytest.mark.parametrize("heading", sorted(set(FAMILIES.values())))
def test_only_parameters_have_no_default(heading):
    rows = [row for row in table_below(heading) if not row[4]]
    assert [row[0] for row in rows if row[3]] == ["`params`"]
    # What does nothing there has no counterpart, and is said to have none.
    assert all("Does nothing there" in row[5] for row in rows if not row[3])


@pytest.mark.parametrize("heading", sorted(set(FAMILIES.values())))
def test_none_of_our_arguments_is_missing_beside_bitsandbytes(heading):
    named = {name for row in table_below(heading) for name in code(row[3])} - {"tx.init(params)"}
    assert named == set(parameters(ours(heading)))


OPTAX = {
    "`optax.lion` to `lion`, `lion8bit`, `lion32bit`": optax.lion,
    "`optax.scale_by_lion` to `scale_by_lion`": optax.scale_by_lion,
    "`optax.lamb` to `lamb`, `lamb8bit`, `lamb32bit`": optax.lamb,
    "`optax.scale_by_trust_ratio` to `scale_by_lamb`": optax.scale_by_trust_ratio,
    "`optax.adamw` to `adamw`, `adamw8bit`, `adamw32bit`": optax.adamw,
    "`optax.scale_by_adam` to `scale_by_adam`": optax.scale_by_adam,
    "`optax.clip_by_global_norm` to `clip_by_global_norm`": optax.clip_by_global_norm,
    "`optax.adamw` to `lion8bit` or `lamb8bit`": optax.adamw,
}


@pytest.mark.parametrize("heading", OPTAX)
def test_every_argument_of_optax_is_in_a_table(heading):
    found = {
        name: values(default)[0] if default else inspect.Parameter.empty
        for theirs, default, *_ in table_below(heading)
        for name in code(theirs)
    }
    assert found == {name: x.default for name, x in parameters(OPTAX[heading]).items()}


@pytest.mark.parametrize("heading", OPTAX)
def test_arguments_beside_those_of_optax_are_ours_and_have_that_default(heading):
    """Where two of our functions differ in a default, the table has none."""
    functions = [getattr(optax_lamblion, name) for name in code(heading.split(" to ")[1])]
    for _, _, here, default, _ in table_below(heading):
        for name in code(here):
            defaults = [parameters(f)[name].default for f in functions if name in parameters(f)]
            agree = len(set(defaults)) == 1 and len(defaults) == len(functions)
            agree = agree and defaults[0] is not inspect.Parameter.empty
            assert defaults and values(default) == (defaults[:1] if agree else [])


def test_what_the_tables_call_an_option_is_one():
    for name in set(re.findall(r"StateOptions\((\w+)=", TEXT)):
        assert name in parameters(optax_lamblion.StateOptions)
