"""One adapter learns a task and then another, as the product trains, with all averages at once.

An average does not act on training before its end, and neither does merging: one run of two tasks
measures every rule.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import get_scheduler

from lcia.data import Task
from lcia.models.host import AdapterHost

LAYERS = list(range(20, 30))
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How both tasks are trained.

    Attributes:
        steps: optimizer steps a task; None: two epochs.
    """

    rank: int = 8
    learning_rate: float = 1e-3
    batch_size: int = 8
    steps: int | None = None
    seed: int = 0


def new_model(host: AdapterHost, setting: Setting) -> Any:
    """Return the base model with a fresh adapter on its upper third."""
    torch.manual_seed(setting.seed)
    return host.new_adapter(
        LoraConfig(
            r=setting.rank,
            lora_alpha=2 * setting.rank,
            layers_to_transform=LAYERS,
            target_modules=MODULES,
        )
    )


def trainable(model: Any) -> dict[str, Tensor]:
    """Return the trained parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def steps_of(task: Task, setting: Setting) -> int:
    """Return the optimizer steps a task is trained for."""
    return setting.steps or 2 * -(-len(task.train) // setting.batch_size)


def train(
    host: AdapterHost,
    model: Any,
    task: Task,
    setting: Setting,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train on a task: AdamW, cosine schedule, clipping at 1, bfloat16 autocast.

    Args:
        host: holds the model.
        model: its trainable parameters learn.
        task: the task.
        setting: how.
        after_step: called after every optimizer step, before gradients are cleared.
    """
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=setting.learning_rate, weight_decay=0.0)
    steps = steps_of(task, setting)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=steps)
    batches = _batches(host, task, setting)
    model.train()
    for _ in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**next(batches)).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        after_step()
        optimizer.zero_grad()


def _batches(host: AdapterHost, task: Task, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield shuffled batches, epoch after epoch."""
    loader = DataLoader(
        [host.chat.encode_example(sample) for sample in task.train],
        batch_size=setting.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(setting.seed),
        collate_fn=host.chat.collate,
    )
    while True:
        yield from loader
