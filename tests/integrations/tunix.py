"""Fine-tunes a small Llama 3 with Tunix: all weights, LoRA, and from a checkpoint."""


def main():
    """Learns to count modulo 64, and then, by adapters, to count by threes."""
    import tempfile

    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import orbax.checkpoint as ocp
    import qwix
    from flax import nnx
    from tunix.models.llama3.model import Llama3, ModelConfig
    from tunix.sft import peft_trainer, utils

    from optax_lamblion import StateOptions, adamw8bit, clip_by_global_norm
    from tests.integrations.report import conclude

    config = ModelConfig(
        num_layers=2, vocab_size=64, embed_dim=64, hidden_dim=128, num_heads=4, head_dim=16,
        num_kv_heads=2, rope_theta=10_000, norm_eps=1e-5,
    )  # fmt: skip

    def batches(stride):
        for seed in range(100):
            start = np.random.default_rng(seed).integers(0, 64, (8, 1))
            tokens = ((start + stride * np.arange(16)) % 64).astype(np.int32)
            yield peft_trainer.TrainingInput(
                input_tokens=tokens, input_mask=np.ones_like(tokens, bool)
            )

    def inputs(example):
        return dict(
            input_tokens=example.input_tokens,
            input_mask=example.input_mask,
            positions=utils.build_positions_from_mask(example.input_mask),
            attention_mask=utils.make_causal_attn_mask(example.input_mask),
        )

    def train(learning_rate, steps, *, base=None, folder=None, options=None):
        """Trains a fresh model; or adapters of a trained one, for another stride."""
        model, stride = Llama3(config, rngs=nnx.Rngs(0)), 1
        if base is not None:
            nnx.update(model, jax.tree.map(jnp.copy, nnx.state(base)))
            where = qwix.LoraProvider(module_path=".*(q|kv|gate|up|down)_proj", rank=16, alpha=16.0)
            inputs_of_model = model.get_model_input()
            model = qwix.apply_lora_to_model(model, where, rngs=nnx.Rngs(1), **inputs_of_model)
            stride = 3
        tx = optax.chain(clip_by_global_norm(1.0), adamw8bit(learning_rate, options=options))
        trainer = peft_trainer.PeftTrainer(
            model,
            tx,
            peft_trainer.TrainingConfig(
                eval_every_n_steps=1000,
                max_steps=steps,
                checkpoint_root_directory=folder,
                checkpointing_options=ocp.CheckpointManagerOptions(save_interval_steps=5),
            ),
        ).with_gen_model_input_fn(inputs)
        trainer.train(batches(stride))
        losses = trainer.metrics_logger.get_metric_history("", "loss", "train")
        return trainer, float(losses[0]), float(losses[-1])

    trainer, first, last = train(3e-3, 20)
    assert last < 0.7 * first
    conclude("Tunix, all weights", first, last, nnx.as_pure(trainer.optimizer.opt_state))

    small = StateOptions(min_8bit_size=256)  # adapters are small
    adapted, first, last = train(3e-2, 60, base=trainer.model, options=small)
    assert last < 0.95 * first, (first, last)
    conclude("Tunix, LoRA", first, last, nnx.as_pure(adapted.optimizer.opt_state))

    with tempfile.TemporaryDirectory() as folder:
        train(3e-3, 10, folder=folder)
        resumed, *_ = train(3e-3, 20, folder=folder)
    both = (nnx.as_pure(nnx.state(x.model)) for x in (trainer, resumed))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *both))


if __name__ == "__main__":
    main()
