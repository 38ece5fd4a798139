"""Dynamic EMA in transformers' Trainer.

The gradients are the accumulated, unscaled, clipped ones of the Trainer's optimizer step; under
DeepSpeed the callback reads them at DeepSpeed's own optimizer. Checkpoints carry the average, and
after ``train()`` the model is the average.
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lcia.integrations import DynamicEMACallback

torch.manual_seed(0)
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 99}
model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2))
tokens = torch.randint(0, 99, (64, 12))
data = [{"input_ids": row, "labels": row} for row in tokens]

with tempfile.TemporaryDirectory() as folder:
    settings = TrainingArguments(
        folder, max_steps=20, logging_steps=10, save_steps=10, use_cpu=True, report_to="none"
    )
    trainer = Trainer(model=model, args=settings, train_dataset=data)
    ema = DynamicEMACallback(rule="release").attach(trainer)
    trainer.train()
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-10")  # goes on to the bit

summary = ema.summary()
print(f"{summary['steps']} steps, horizon {summary['horizon_steps']:.1f} steps")
