"""Dynamic EMA in TRL's SFTTrainer: the same callback, one line.

TRL trains by transformers' Trainer, so the gradients are again the accumulated, unscaled, clipped
ones of the optimizer step: four batches accumulated count as one step of the average.
"""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from lcia.integrations import DynamicEMACallback

torch.manual_seed(0)
words = ["<pad>", "<end>", "red", "green", "blue", "is", "a", "colour", "animal", "cat", "dog"]
core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")

shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **shape, **heads, **ends))

kinds = {"colour": ["red", "green", "blue"], "animal": ["cat", "dog"]}
rows = [
    {"prompt": f"{thing} is", "completion": f" a {kind}"}
    for kind, things in kinds.items()
    for thing in things
]

with tempfile.TemporaryDirectory() as folder:
    settings = SFTConfig(
        folder,
        max_steps=20,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        learning_rate=1e-2,
        logging_steps=10,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows * 8),
        processing_class=tokenizer,
    )
    ema = DynamicEMACallback(rule={"name": "horizon", "share": 0.25}).attach(trainer)
    trainer.train()

summary, last = ema.summary(), trainer.state.log_history[-2]
print(f"{summary['steps']} steps, mean beta {summary['beta_mean']:.2f}")
print(f"in the last log: beta {last['ema/beta_mean']:.2f}, drift {last['ema/drift']:.0f}")
