"""The README's examples run, and its claims match the package; `test_docs.py` tests the pages."""

import json
import pathlib
import re
import tomllib

import optax

from optax_lamblion import cli

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"


def test_the_examples_run_and_the_bytes_are_as_printed(capsys):
    text = README.read_text(encoding="utf-8")
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(snippet, names)
    totals = re.search(r"([\d,]+) bytes in total; optax.lion needs ([\d,]+)", text)
    ours, theirs = totals.groups()
    assert f"{ours}\n" in capsys.readouterr().out
    report = names["state_report"](optax.lion(1e-4).init(names["params"]))
    assert f"{report.nbytes:,}" == theirs


def test_badges_match_the_package():
    text = README.read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    jax = next(line for line in project["dependencies"] if line.startswith("jax>="))
    expected = {
        "python": project["requires-python"].removeprefix(">=") + "%2B",
        "jax": jax.removeprefix("jax>=") + "%2B",
        "license": project["license"].replace("-", "--"),
    }
    assert dict(re.findall(r"badge/(\w+)-(.+)-blue\)", text)) == expected


def test_the_table_of_memory_is_what_the_command_prints(capsys):
    """`optax-lamblion memory --params 7e9`, as the README says."""
    text = README.read_text(encoding="utf-8")
    number = r"(?:\*\*)?([\d.]+)(?:\*\*)?"
    rows = re.findall(rf"^\| (.*?) \| {number} \| (?:\*\*)?([\d.]+) GiB", text, re.M)
    shown = {
        name: (float(each), float(size))
        for names, each, size in rows
        for name in re.findall(r"`(\w+(?:\.\w+)?)`", names)
    }
    assert {"adamw8bit", "lamb8bit", "lion8bit", "optax.adamw", "optax.lion"} <= shown.keys()
    chosen = [word for name in shown for word in ("--optimizer", name)]
    assert cli.main(["memory", "--params", "7e9", "--json", *chosen]) == 0
    for row in json.loads(capsys.readouterr().out)["optimizers"]:
        each, size = shown[row["name"]]
        assert each == round(row["bytes_per_parameter"], 3)
        assert size == round(row["state_bytes"] / 2**30, 1)
