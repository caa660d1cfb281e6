"""Fits a coupling flow to normal numbers with the `fit_to_data` of FlowJAX."""


def main():
    """The state stays inside of `fit_to_data`, so a copy is caught where it is updated."""
    import jax
    import jax.numpy as jnp
    import optax
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow
    from flowjax.train import fit_to_data

    from optax_lamblion import StateOptions, adamw8bit
    from tests.integrations.report import conclude

    tx = adamw8bit(1e-3, options=StateOptions(min_8bit_size=64))
    states = []

    def update(grads, state, params=None):
        updates, state = tx.update(grads, state, params)
        jax.debug.callback(lambda *leaves: states.append(leaves), *jax.tree.leaves(state))
        return updates, state

    data = 3 * jax.random.normal(jax.random.key(0), (1000, 2)) + 1
    flow = coupling_flow(
        jax.random.key(1), base_dist=Normal(jnp.zeros(2)), flow_layers=2, nn_width=64
    )
    watched = optax.GradientTransformation(tx.init, update)
    _, losses = fit_to_data(
        jax.random.key(2), flow, data, optimizer=watched, max_epochs=5, show_progress=False
    )
    jax.effects_barrier()
    first, *_, last = map(float, losses["train"])
    conclude("FlowJAX", first, last, states[-1])


if __name__ == "__main__":
    main()
