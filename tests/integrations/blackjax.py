"""Approximates a normal distribution with the mean-field VI of BlackJAX."""


def main():
    """The means of 256 coordinates have to arrive at 2."""
    import blackjax
    import jax
    import jax.numpy as jnp

    from optax_lamblion import StateOptions, adamw8bit
    from tests.integrations.report import conclude

    tx = adamw8bit(0.05, options=StateOptions(min_8bit_size=64))
    vi = blackjax.meanfield_vi(lambda z: -0.5 * jnp.sum((z - 2.0) ** 2), tx, 32)
    state = vi.init(jnp.zeros(256))
    step = jax.jit(vi.step)
    for i in range(200):
        state, _ = step(jax.random.key(i), state)
    last = float(jnp.abs(state.mu - 2.0).max())
    assert last < 0.2
    conclude("BlackJAX", 2.0, last, state.opt_state)


if __name__ == "__main__":
    main()
