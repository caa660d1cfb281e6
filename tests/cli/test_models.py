import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optax_lamblion.demo import language, text
from optax_lamblion.demo.transformer import Transformer, TransformerConfig, generate

TINY = TransformerConfig(width=16, layers=1, heads=2, seq_len=8)


@pytest.fixture(scope="module")
def split():
    return nnx.split(Transformer(TINY, rngs=nnx.Rngs(0)), nnx.Param)


def test_a_logit_depends_on_earlier_bytes_only(split):
    model = nnx.merge(*split)
    tokens = jnp.arange(16).reshape(2, 8)
    changed = tokens.at[0, 5].set(99)
    difference = np.abs(model(tokens) - model(changed)).max(-1)
    assert (difference[0, :5] == 0).all()
    assert (difference[0, 5:] > 0).all()
    assert (difference[1] == 0).all()


def test_order_matters_to_attention(split):
    model = nnx.merge(*split)
    one, other = model(jnp.array([[1, 2, 3, 4], [2, 1, 3, 4]]))[:, -1]
    assert np.abs(one - other).max() > 1e-6


def test_nearly_all_parameters_are_in_leaves_large_enough_for_8_bits():
    model = nnx.eval_shape(lambda: Transformer(TransformerConfig(), rngs=nnx.Rngs(0)))
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    assert sum(size for size in sizes if size >= 4096) > 0.99 * sum(sizes)


@pytest.mark.parametrize("prompt_length", [1, 3, 20])
def test_generate_continues_the_prompt(split, prompt_length):
    prompt = jnp.arange(prompt_length, dtype=jnp.int32)
    joined = generate(*split, prompt, jax.random.key(0), seq_len=8, count=5)
    assert joined.shape == (prompt_length + 5,)
    np.testing.assert_array_equal(joined[:prompt_length], prompt)


def test_cold_sampling_picks_the_likeliest_byte_of_the_last_window(split):
    prompt = jnp.arange(20, dtype=jnp.int32)
    joined = generate(*split, prompt, jax.random.key(0), seq_len=8, count=1, temperature=1e-6)
    logits = nnx.merge(*split)(prompt[None, -8:])
    assert joined[-1] == logits[0, -1].argmax()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 100, "heads": 3}, "such as 102"),
        ({"width": 12, "heads": 4}, "multiple of 8, such as 16"),
        ({"layers": 0}, "`layers` is 0"),
        ({"heads": -1}, "`heads` is -1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**sizes)


def test_samples_hold_nothing_that_a_terminal_obeys():
    content = np.frombuffer(b"a\x1b[2J\x07\n\tb\xff\xc3\xa9", np.uint8)
    assert language._decode(content) == "a\ufffd[2J\ufffd\n\tb\ufffd\u00e9"


def test_an_empty_prompt_is_refused():
    corpus = text.Corpus(np.zeros(100, np.uint8), np.zeros(100, np.uint8), "zeros")
    with pytest.raises(ValueError, match="prompt is empty"):
        language.text_task(corpus, TINY, prompt="")
