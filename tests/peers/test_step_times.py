"""The process that steps PyTorch's optimizers for `python -m benchmarks.steps`."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = ROOT / "benchmarks" / "steps" / "torch_worker.py"
# All but torchao's, which compiles for half a minute. Bytes of state per parameter.
STATE_BYTES = {
    "bitsandbytes Lion8bit": 1 + 4 / 256,
    "bitsandbytes LAMB8bit": 2 + 8 / 256,
    "bitsandbytes AdamW8bit": 2 + 8 / 256,
    "lion-pytorch Lion": 4,
    "torch AdamW, fused": 8,
}


@pytest.fixture(scope="module")
def ask():
    questions = [{"do": "hello", "threads": 1}]
    shapes = [[64, 1024], [128, 256]]
    for name in STATE_BYTES:
        questions.append({"do": "make", "name": name, "shapes": shapes, "dtype": "float32"})
        questions.append({"do": "sample", "name": name, "calls": 2})
    questions += [{"do": "drop"}, {"do": "sample", "name": "torch AdamW, fused", "calls": 1}]
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run([sys.executable, WORKER], input=lines, stdout=subprocess.PIPE, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(questions)
    return dict(zip(map(_key, questions), answers, strict=True))


def _key(question):
    return tuple(question.get(key) for key in ("do", "name", "calls"))


def test_it_says_what_it_is(ask):
    assert ask["hello", None, None]["versions"]["bitsandbytes"] == "0.50.2"


@pytest.mark.parametrize("name", STATE_BYTES)
def test_it_steps(ask, name):
    bytes_ = ask["make", name, None]["state_bytes"] / (64 * 1024 + 128 * 256)
    # Counts, and the map of codes that bitsandbytes has once for each tensor.
    assert STATE_BYTES[name] <= bytes_ < STATE_BYTES[name] + 0.1
    assert ask["sample", name, 2]["ms"] > 0


def test_what_it_cannot_do_is_an_answer_and_not_its_end(ask):
    assert "KeyError" in ask["sample", "torch AdamW, fused", 1]["error"]
