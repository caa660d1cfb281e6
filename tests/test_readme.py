"""What the README and the pages beside it show is what happens."""

import pathlib
import re
import textwrap

import optax

ROOT = pathlib.Path(__file__).parents[1]
README, PAGING, MESHES = (ROOT / x for x in ("README.md", "docs/paging.md", "docs/meshes.md"))


def test_the_examples_run_and_the_bytes_are_as_printed(capsys):
    text = README.read_text(encoding="utf-8")
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(snippet, names)
    totals = re.search(r"in all ([\d,]+) bytes, where optax.lion keeps ([\d,]+)", text)
    ours, theirs = totals.groups()
    assert f"{ours}\n" in capsys.readouterr().out
    report = names["state_report"](optax.lion(1e-4).init(names["params"]))
    assert f"{report.nbytes:,}" == theirs


def run_examples(page, capsys):
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(textwrap.dedent(snippet), names)
        for line, printed in re.findall(r"^print\((.*)\)  # (.*)$", snippet, re.MULTILINE):
            assert capsys.readouterr().out.strip() == printed, line
    return names


def test_the_examples_about_paging_run(capsys):
    assert run_examples(PAGING, capsys)["k"] == 4


def test_the_examples_about_meshes_run(capsys):
    """On all devices that there are: eight, in these tests."""
    names = run_examples(MESHES, capsys)
    assert names["mesh"].size == 8
    assert names["opt_state"].mu["w"].sharding.shard_shape((4096, 1024)) == (512, 1024)
