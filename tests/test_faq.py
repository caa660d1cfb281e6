"""The error messages on `docs/faq.md` are those of the library, word for word.

Each function below makes the mistake that the page explains. The page has one block of `text` for
each, and none besides.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from optax_lamblion import (
    StateOptions,
    adamw8bit,
    apply_fused,
    lion,
    lion8bit,
    lion32bit,
    paged_lion8bit,
)

PAGE = (Path(__file__).parents[1] / "docs/faq.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Error messages\n")[2]

PARAMS = {"w": jnp.ones((64, 256))}


def no_params():
    tx = adamw8bit(1e-3)
    tx.update(PARAMS, tx.init(PARAMS))


def whole_numbers():
    adamw8bit(1e-3).init({"w": jnp.ones((64, 256)), "step": jnp.int32(0)})


def argument_of_pytorch():
    adamw8bit(lr=1e-3)


def state_in_other_bits():
    tx = lion8bit(1e-4, weight_decay=0.1)
    tx.update(PARAMS, lion32bit(1e-4).init(PARAMS), PARAMS)


def state_with_other_blocks():
    tx = lion8bit(1e-4, options=StateOptions(block_size=128))
    tx.update(PARAMS, lion8bit(1e-4).init(PARAMS), PARAMS)


def state_of_other_parameters():
    tx, larger = lion8bit(1e-4), {"w": jnp.ones((64, 512))}
    tx.update(larger, tx.init(PARAMS), larger)


def state_as_a_checkpoint_library_returns_it():
    tx = lion8bit(1e-4)
    tx.update(PARAMS, tx.init(PARAMS)._asdict(), PARAMS)


def bits_under_inject_hyperparams():
    optax.inject_hyperparams(lion)(1e-4, bits=8).init(PARAMS)


def mask_under_inject_hyperparams():
    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
    optax.inject_hyperparams(lion8bit)(1e-4, mask=matrices).init(PARAMS)


def optimizer_not_last():
    tx = optax.chain(lion8bit(1e-4), optax.scale(0.5))
    apply_fused(tx, PARAMS, PARAMS, tx.init(PARAMS))


def compensated_without_apply_fused():
    half = {"w": jnp.ones((64, 256), jnp.bfloat16)}
    tx = lion8bit(1e-4, options=StateOptions(param_rounding="compensated"))
    tx.update(half, tx.init(half), half)


def accumulation_around_a_paged_optimizer():
    params = {"w": jnp.ones((1024, 256))}
    tx = optax.MultiSteps(paged_lion8bit(1e-4), 4)
    jax.jit(tx.update)(params, tx.init(params), params)


def kernels_without_a_gpu():
    tx = lion8bit(1e-4, options=StateOptions(implementation="mosaic"))
    with jax.default_device(jax.devices("cpu")[0]):
        jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS)


MISTAKES = [
    no_params,
    whole_numbers,
    argument_of_pytorch,
    state_in_other_bits,
    state_with_other_blocks,
    state_of_other_parameters,
    state_as_a_checkpoint_library_returns_it,
    bits_under_inject_hyperparams,
    mask_under_inject_hyperparams,
    optimizer_not_last,
    compensated_without_apply_fused,
    accumulation_around_a_paged_optimizer,
    kernels_without_a_gpu,
]


def on_the_page():
    """What the blocks of the section say, without their line breaks."""
    return [" ".join(x.split()) for x in re.findall(r"^```text\n(.*?)^```$", SECTION, re.M | re.S)]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__)
def test_a_mistake_raises_what_the_page_says(mistake):
    with pytest.raises((TypeError, ValueError)) as raised:
        mistake()
    message = f"{raised.type.__name__}: {raised.value}"
    assert " ".join(message.split()) in on_the_page()


def test_the_page_has_no_other_message():
    assert len(on_the_page()) == len(set(on_the_page())) == len(MISTAKES)
