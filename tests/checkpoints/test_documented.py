"""What docs/checkpoints.md saves, another process goes on from, by the page's own lines."""

import subprocess
import sys
import textwrap

from tests.test_docs import DOCS, FENCE, read

SAVES = (".save(", ".write_bytes(")


def blocks():
    """The code of the page: what all begin with, what saves, and what goes on."""
    first, *others = [textwrap.dedent(x[3]) for x in FENCE.finditer(read(DOCS / "checkpoints.md"))]
    saving = [code for code in others if any(word in code for word in SAVES)]
    return first, saving, [code for code in others if code not in saving]


def run(code, folder):
    """What code prints in a process of its own."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_another_process_goes_on(tmp_path):
    first, saving, going_on = blocks()
    assert len(saving) == 3 and len(going_on) > 8
    run("\n".join([first, *saving]), tmp_path)
    printed = run("\n".join([first, *going_on]), tmp_path)
    for expected in ("uint8", "3", "pinned_host", "('fsdp',)", "uint8 ('fsdp',)"):
        assert expected in printed, printed
