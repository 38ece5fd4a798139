"""Train one group's adapter on one task with transformers' Trainer."""

import inspect
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from lcia.config import ADAPTER_DEFAULTS, TRAINING_DEFAULTS, AssistantConfig
from lcia.data.task import Task
from lcia.errors import TrainingError
from lcia.learner.checkpoint import TrainingState, checkpoint_step, last_checkpoint
from lcia.learner.collator import AnswerCollator
from lcia.learner.files import publish
from lcia.learner.journal import Journal
from lcia.methods.base import Method, TaskContext
from lcia.models.host import AdapterHost

logger = logging.getLogger(__name__)

CARRIED = "method_state.safetensors"
"""Tensors a method leaves for the group's next task, beside the adapter's own files."""


def train_adapter(
    host: AdapterHost,
    task: Task,
    *,
    method: Method,
    config: AssistantConfig,
    group: str,
    start: Path | None,
    reused: bool,
    task_index: int,
    folder: Path,
    journal: Journal,
) -> Path:
    """Train a group's adapter on a task, resuming from the last checkpoint if there is one.

    Args:
        host: holds the base model.
        task: its ``train`` samples are learned.
        method: what differs from plain training.
        config: adapter and training settings, seed.
        group: id of the group.
        start: the adapter to train on: the group's own so far, or another group's to copy; None
            for a fresh one.
        reused: whether ``start`` is the group's own.
        task_index: how many tasks were learned before.
        folder: the run's folder; gets ``checkpoints/`` and ``adapter/``.
        journal: told every step.

    Returns:
        The folder of the trained adapter, in peft's format.

    Raises:
        TrainingError: the loss is not finite.
    """
    seed = config.seed + 1000 * task_index
    set_seed(seed)
    model = (
        host.adapter_to_train(start)
        if start is not None
        else host.new_adapter(LoraConfig(**{**ADAPTER_DEFAULTS, **config.adapter}))
    )
    carried = start / CARRIED if start is not None and reused else None
    context = TaskContext(
        task=task.name,
        task_index=task_index,
        group=group,
        reused=reused,
        parameters={n: p for n, p in model.named_parameters() if p.requires_grad},
        carried=load_file(carried) if carried is not None and carried.is_file() else {},
        seed=seed,
    )
    checkpoint = last_checkpoint(folder / "checkpoints")
    journal.rewind(checkpoint_step(checkpoint) if checkpoint else 0)
    trainer = _trainer(host, model, task, config=config, seed=seed, folder=folder)
    method.attach(trainer, context)
    trainer.add_callback(_Steps(journal, task=task.name))
    # Last, so that a checkpoint is marked complete after every other callback wrote its part.
    trainer.add_callback(TrainingState(checkpoint, lambda: trainer.accelerator.scaler))
    model.train()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = method.finish(context)
    return _save(trainer, state, folder=folder)


def _trainer(
    host: AdapterHost, model: Any, task: Task, *, config: AssistantConfig, seed: int, folder: Path
) -> Trainer:
    examples = [host.chat.encode_example(sample) for sample in task.train]
    if cut := sum(example.truncated for example in examples):
        logger.warning(
            "task '%s': %d of %d prompts are longer than %d tokens and lose their middle.",
            task.name,
            cut,
            len(examples),
            host.chat.max_prompt_tokens,
        )
    parameters = inspect.signature(host.base.model.forward).parameters
    dtype = str(host.base.model.dtype).removeprefix("torch.")
    arguments = {
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "use_cpu": host.base.model.device.type == "cpu",
        "dataloader_pin_memory": host.base.model.device.type == "cuda",
        "save_total_limit": 2,
        **TRAINING_DEFAULTS,
        **config.training,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            seed=seed,
            data_seed=seed,
            save_strategy="steps",
            save_only_model=True,
            remove_unused_columns=False,
            **arguments,
        ),
        train_dataset=examples,
        data_collator=AnswerCollator(
            pad_id=host.base.tokenizer.pad_token_id, keep_logits="logits_to_keep" in parameters
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _save(trainer: Trainer, state: Mapping[str, Any], *, folder: Path) -> Path:
    target, draft = folder / "adapter", folder / ".adapter-draft"
    trainer.save_model(str(draft))  # gathers what is sharded
    if trainer.is_world_process_zero():
        for name in ("training_args.bin", "README.md"):
            (draft / name).unlink(missing_ok=True)
        if state:
            tensors = {name: t.detach().cpu().contiguous() for name, t in state.items()}
            save_file(tensors, draft / CARRIED)
        publish(draft, target)
    trainer.accelerator.wait_for_everyone()
    return target


class _Steps(TrainerCallback):
    """Writes every logged step to the journal, with the time left."""

    def __init__(self, journal: Journal, *, task: str) -> None:
        self.journal = journal
        self.task = task

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first, self._start = state.global_step, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        if "loss" not in logs or not state.is_world_process_zero:
            return
        done = state.global_step - self._first
        pace = (time.monotonic() - self._start) / max(done, 1)
        if not _is_finite(logs["loss"]):
            raise TrainingError(
                f"task '{self.task}', step {state.global_step}: the loss is {logs['loss']}. "
                "Lower training.learning_rate or look for empty answers in the data."
            )
        self.journal.write(
            "step",
            task=self.task,
            step=state.global_step,
            steps=state.max_steps,
            eta_s=round(pace * (state.max_steps - state.global_step), 1),
            **logs,
        )


def _is_finite(value: float) -> bool:
    return value - value == 0
