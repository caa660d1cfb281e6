"""Fits a variational Gaussian process with the `fit` of GPJax."""


def main():
    """A sparse posterior with 64 inducing points, whose mean and covariance root are trained."""
    import gpjax as gpx
    import jax
    import jax.numpy as jnp
    import optax

    from optax_lamblion import StateOptions, adamw8bit
    from tests.integrations.report import conclude

    tx = adamw8bit(0.01, weight_decay=0.0, options=StateOptions(min_8bit_size=64))
    states = []

    def update(grads, state, params=None):
        updates, state = tx.update(grads, state, params)
        jax.debug.callback(lambda *leaves: states.append(leaves), *jax.tree.leaves(state))
        return updates, state

    x = jnp.linspace(0.0, 3.0, 100)[:, None]
    data = gpx.Dataset(X=x, y=jnp.sin(x))
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=gpx.kernels.RBF())
    posterior = prior * gpx.likelihoods.Gaussian(num_datapoints=100)
    model = gpx.variational_families.VariationalGaussian(
        posterior=posterior, inducing_inputs=jnp.linspace(0.0, 3.0, 64)[:, None]
    )
    _, losses = gpx.fit(
        model=model,
        objective=lambda q, d: -gpx.objectives.elbo(q, d),
        train_data=data,
        optim=optax.GradientTransformation(tx.init, update),
        num_iters=50,
        verbose=False,
    )
    jax.effects_barrier()
    conclude("GPJax", float(losses[0]), float(losses[-1]), states[-1])


if __name__ == "__main__":
    main()
