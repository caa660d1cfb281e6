"""What the README shows is what happens. `test_docs.py` says so of the pages."""

import pathlib
import re

import optax

README = pathlib.Path(__file__).parents[1] / "README.md"


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
