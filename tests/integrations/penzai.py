"""Trains an MLP of Penzai with its `StatefulTrainer`."""


def main():
    """Two kernels of 8192 elements, which are in 8 bits."""
    import jax
    import jax.numpy as jnp
    from penzai import pz
    from penzai.models import simple_mlp
    from penzai.toolshed import basic_training

    from optax_lamblion import adamw8bit
    from tests.integrations.report import conclude

    model = simple_mlp.MLP.from_config(
        name="mlp", init_base_rng=jax.random.key(0), feature_sizes=[64, 128, 64]
    )

    def loss_fn(model, rng, state, x, y):
        out = model(pz.nx.wrap(x).tag("batch", "features")).unwrap("batch", "features")
        loss = jnp.mean((out - y) ** 2)
        return loss, state, {"loss": loss}

    trainer = basic_training.StatefulTrainer.build(
        root_rng=jax.random.key(1), model=model, optimizer_def=adamw8bit(1e-2), loss_fn=loss_fn
    )
    x = jax.random.normal(jax.random.key(2), (64, 64))
    first, *_, last = (float(trainer.step(x=x, y=jnp.sin(x))["loss"]) for _ in range(30))
    conclude("Penzai", first, last, trainer.state.value)


if __name__ == "__main__":
    main()
