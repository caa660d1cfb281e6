"""Fits a Bayesian linear regression with the `SVI` of NumPyro."""


def main():
    """Trains a guide with 64 locations and 64 scales."""
    import jax
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    from optax_lamblion import StateOptions, adamw8bit
    from tests.integrations.report import conclude

    x = jax.random.normal(jax.random.key(0), (200, 64))
    y = x @ jnp.linspace(-1.0, 1.0, 64)

    def model(x, y):
        weights = numpyro.sample("weights", dist.Normal(0, 1).expand([64]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ weights, 0.1), obs=y)

    tx = adamw8bit(0.01, weight_decay=0.0, options=StateOptions(min_8bit_size=64))
    svi = SVI(model, AutoNormal(model), tx, Trace_ELBO())
    result = svi.run(jax.random.key(1), 500, x, y, progress_bar=False)
    first, last = map(float, (result.losses[0], result.losses[-1]))
    conclude("NumPyro", first, last, result.state.optim_state)


if __name__ == "__main__":
    main()
