"""A Trainer on one process, then on two under DDP: trained, saved, resumed.

python -m tests.distributed.trainer_ranks FOLDER ddp
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from benchmarks.speed.parity import join
from lcia.integrations import DynamicEMACallback

STEPS, SAVE_AT = 8, 4


class Regression(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.body = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Tanh(), nn.Linear(3, 1))
        self.post_init()

    def forward(self, x, labels):
        return {"loss": 30 * (self.body(x).squeeze(-1) - labels).pow(2).mean()}


class Points(Dataset):
    def __init__(self):
        self.x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.x[i].sum()}


def train(folder, setting, *, resume=None):
    """Train once; return the average's state, the figures of each step and the logs."""
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        ddp_backend=None if setting == "single" else "gloo",
        max_steps=STEPS,
        per_device_train_batch_size=8 if setting == "single" else 4,
        gradient_accumulation_steps=2,
        max_grad_norm=5.0,
        learning_rate=0.02,
        optim="adamw_torch",
        save_steps=SAVE_AT,
        logging_steps=2,
        report_to="none",
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    records = []
    callback = DynamicEMACallback(rule="paper", on_step=records.append)
    model = Regression(PreTrainedConfig())
    trainer = Trainer(model=model, args=args, train_dataset=Points(), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    logs = trainer.state.log_history
    wrapped = type(trainer.model_wrapped).__name__
    state = callback.ema.state_dict()
    return {"state": state, "records": records, "logs": logs, "wrapped_in": wrapped}


def equal(a, b):
    """Whether two states are the same to the bit."""
    groups = ("shadow", "grad_prev", "theta_prev", "theta_before", "step_l1")
    tensors = [(a[g][n], b[g][n]) for g in groups for n in a[g]]
    return all(torch.equal(x, y) for x, y in [*tensors, (a["stats"], b["stats"])])


def train_twice(setting, folder):
    """Train through, and again from the middle; rank 0 writes what came of it."""
    whole = train(folder / setting, setting)
    again = train(folder / setting, setting, resume=str(folder / setting / f"checkpoint-{SAVE_AT}"))
    if torch.distributed.get_rank() == 0:
        torch.save(whole["state"], folder / f"{setting}.pt")
        facts = {
            "resumed_to_the_bit": equal(whole["state"], again["state"]),
            "resumed_steps": [record["step"] for record in again["records"]],
            "wrapped_in": whole["wrapped_in"],
            "records": whole["records"],
            "logs": whole["logs"],
        }
        (folder / f"{setting}.json").write_text(json.dumps(facts))


def rank_main(rank, folder, settings):
    join(rank, folder / "meeting")
    environment = dict(os.environ)
    for setting in settings:
        train_twice(setting, folder)
        os.environ.clear()  # TrainingArguments tells accelerate of FSDP and DeepSpeed there
        os.environ.update(environment)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    single = train(folder / "single", "single")
    torch.save(single["state"], folder / "single.pt")
    torch.multiprocessing.spawn(rank_main, args=(folder, sys.argv[2:]), nprocs=2)
