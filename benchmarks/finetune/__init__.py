"""Fine-tuning a pretrained model with 8-bit and with float32 state.

`python -m benchmarks.finetune` measures, and `report` has the figures of it.
"""
