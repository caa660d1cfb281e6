import numpy as np
import pytest

from optax_lamblion.demo import text


@pytest.fixture(scope="module")
def sources():
    return text.python_sources()


def corpus(train, held_out=b"0123456789"):
    return text.Corpus(np.frombuffer(train, np.uint8), np.frombuffer(held_out, np.uint8), "here")


def test_python_sources_are_there_and_the_same_every_time(sources):
    again = text.python_sources()
    assert sources.train.size > 2_000_000
    assert 0.02 < sources.held_out.size / sources.train.size < 0.3
    np.testing.assert_array_equal(sources.train, again.train)
    np.testing.assert_array_equal(sources.held_out, again.held_out)


def test_python_sources_leave_out_tests_and_installed_packages(sources):
    whole = sources.train.tobytes() + sources.held_out.tobytes()
    assert b"class JSONDecoder" in whole
    assert b"class TestCase(object)" in whole  # unittest is a part of the library
    assert b"import _testcapi" not in whole
    assert b"optax" not in whole


def test_an_interpreter_without_sources_is_told_about_text(tmp_path, monkeypatch):
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="--text FILE"):
        text.python_sources()


def test_the_last_tenth_of_a_file_is_held_out(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(bytes(range(100)))
    found = text.text_file(path)
    assert found.train.tolist() == list(range(90))
    assert found.held_out.tolist() == list(range(90, 100))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.txt.*No such file"):
        text.text_file(tmp_path / "nowhere.txt")


def test_a_short_text_gets_the_lengths_that_would_do():
    with pytest.raises(ValueError, match="at least 650 bytes or use `--seq-len 9` or less"):
        text.check_length(corpus(b"a" * 90), 64)
    with pytest.raises(ValueError, match="has 2 bytes"):
        text.check_length(corpus(b"ab", b""), 64)
    text.check_length(corpus(b"a" * 90), 9)


def test_batches_depend_on_seed_and_step_only():
    c = corpus(bytes(range(200)))
    np.testing.assert_array_equal(c.train_windows(1, 2, 4, 8), c.train_windows(1, 2, 4, 8))
    assert (c.train_windows(1, 2, 4, 8) != c.train_windows(1, 3, 4, 8)).any()
    assert (c.train_windows(1, 2, 4, 8) != c.train_windows(2, 2, 4, 8)).any()


def test_windows_are_consecutive_bytes_and_reach_both_ends():
    c = corpus(bytes(range(50)), bytes(range(100)))
    windows = np.concatenate([c.train_windows(0, step, 16, 8) for step in range(20)])
    assert windows.shape[1] == 9
    assert (np.diff(windows) == 1).all()
    assert (windows.min(), windows.max()) == (0, 49)
    held_out = c.held_out_windows(5, 8)
    assert (held_out[0, 0], held_out[-1, -1]) == (0, 99)


def test_held_out_windows_are_no_more_than_there_is_text_for():
    assert corpus(b"a" * 90, b"b" * 33).held_out_windows(100, 8).shape == (4, 9)


def test_unigram_loss_is_the_entropy_of_the_byte_frequencies():
    c = corpus(b"ab" * 100_000)
    windows = np.frombuffer(b"abab", np.uint8)[None].astype(np.int32)
    assert text.bits_per_byte(c.unigram_loss(windows)) == pytest.approx(1, abs=5e-3)
