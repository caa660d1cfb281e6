"""What docs/recipes.md saves, another process resumes from, by the page's own lines."""

import re
import subprocess
import sys

from tests.test_docs import DOCS, FENCE, read

PRINT = "\nprint(float(loss).hex())\n"


def blocks():
    """The code of the page by the heading that it stands under."""
    _, *sections = re.split(r"^## (.+)$", read(DOCS / "recipes.md"), flags=re.MULTILINE)
    named = dict(zip(sections[::2], sections[1::2], strict=True))
    found = {name: [x[3] for x in FENCE.finditer(text)] for name, text in named.items()}
    (setup,) = FENCE.findall(read(DOCS / "recipes.md").partition("\n## ")[0])
    return setup[2], found


def run(code, folder):
    """What code prints in a process of its own, as lines."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_another_process_ends_with_the_loss_of_an_uninterrupted_run(tmp_path):
    setup, found = blocks()
    (step,) = found["One jitted step with donation"]
    functions = step.partition("\n\n\nparams, ")[0]
    schedule = found["Warm-up and cosine schedule"][0].partition("\nparams, ")[0]
    optimizer, save, resume = found["Resume in a new process"]
    common = "\n".join([setup, functions, schedule, optimizer])
    uninterrupted = f"params, opt_state, loss = train(tx, steps=10){PRINT}"
    whole, halfway = run(f"{common}\n{uninterrupted}{save}{PRINT}", tmp_path)
    (resumed,) = run(f"{common}\n{resume}{PRINT}", tmp_path)[-1:]
    assert resumed == whole != halfway
