"""Whether settings can train at all, found out before anything is made or scored."""

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers import TrainerCallback

from lcia.config import AssistantConfig
from lcia.config.training import CANNOT_BE_MADE, one_line
from lcia.data.sample import Task
from lcia.errors import ConfigError, LciaError, TrainingError
from lcia.evaluation.kept import check_answers
from lcia.learner.training import build_trainer, check_spread, context_of
from lcia.memory import is_out_of_memory
from lcia.models.host import AdapterHost

DETERMINES = ("method", "rule", "adapter", "training", "projector")
"""Settings that decide whether a step can be taken, besides the model in memory."""


def preflight(host: AdapterHost, task: Task, config: AssistantConfig) -> None:
    """Take one step with a throw-away adapter, by the method and the settings a task will have.

    The adapter, optimizer, schedule, batches and Trainer are the real ones; the batch is the
    task's shortest sample alone. Weights and random state are left as they were. Settings that
    passed with this model in memory are not tried again. Where several processes share the work,
    or FSDP or DeepSpeed is asked for, no step is taken.

    Raises:
        ConfigError: the settings cannot train this model on this task.
        DataError: no answer of the task could score; see ``check_answers``.
        ModelError: the model's chat template refuses the task's turns.
    """
    config = config.resolved()
    _check_count(task, config)
    _check_precision(host, config)
    check_spread(
        config.build_method(),
        config,
        projector=host.projector is not None,
        images=host.base.processor is not None,
    )
    shown = next((sample for sample in (*task.train, *task.test) if sample.images), None)
    if shown is not None and host.base.processor is None:
        host.chat.encode_prompt(shown.messages)  # raises: this model reads text only
    if (content := task.fingerprint()) not in host.answerable:
        check_answers(host.chat, task)
        host.answerable.add(content)
    settings = config.model_dump(mode="json", include=set(DETERMINES))
    tried = json.dumps(settings, sort_keys=True)
    if tried in host.proven:
        return
    with _no_trace(host), tempfile.TemporaryDirectory() as scratch:
        try:
            _step(host, task, config, folder=Path(scratch))
        except CANNOT_BE_MADE as error:
            if is_out_of_memory(error):
                raise
            if isinstance(error, LciaError) and not isinstance(error, TrainingError):
                raise
            raise ConfigError(
                f"training: a first step fails with these settings: {one_line(error)} Nothing was "
                "made. Correct training, adapter or method."
            ) from error
    host.proven.add(tried)


def _step(host: AdapterHost, task: Task, config: AssistantConfig, *, folder: Path) -> None:
    method = config.build_method()
    model = method.open(host, None, config.adapter)
    if not method.trains or PartialState().num_processes > 1:
        return
    context = context_of(host, model, task, task_index=0, group="g1", seed=config.seed)
    batch = int(config.training["per_device_train_batch_size"])
    short = min(task.train, key=lambda sample: len(sample.prompt) + len(sample.answers[0]))
    alone = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "report_to": "none",
    }
    trainer = build_trainer(
        host,
        model,
        method,
        context,
        config=config.model_copy(update={"training": {**config.training, **alone}}),
        folder=folder,
        examples=_Same(host.chat.encode_example(short), -(-len(task.train) // batch)),
    )
    method.attach(trainer, context)
    stop = _Stop()
    trainer.add_callback(stop)
    model.train()
    trainer.train()
    if not stop.stepped:
        raise ConfigError(
            f"training: takes no step on task '{task.name}'. Correct num_train_epochs or max_steps."
        )


class _Same(Dataset[Any]):
    """One example, as often as there are batches, so that the number of steps is the task's."""

    def __init__(self, example: Any, count: int) -> None:
        self._example = example
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._example


class _Stop(TrainerCallback):
    """Ends training after its first step, before anything is saved."""

    stepped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _check_storable(kwargs["optimizer"].state_dict())
        _check_storable(kwargs["lr_scheduler"].state_dict())
        self.stepped = control.should_training_stop = True
        control.should_save = False


def _check_storable(node: Any) -> None:
    """Check that a state is made of what checkpoints hold: tensors, and what JSON has."""
    if isinstance(node, dict):
        for key, value in node.items():
            _check_storable(key)
            _check_storable(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _check_storable(value)
    elif not isinstance(node, (torch.Tensor, str, int, float, bool, type(None))):
        raise ConfigError(
            f"training.optim: its state has a {type(node).__name__}, which checkpoints cannot "
            "hold. Choose another optimizer or schedule."
        )


@contextmanager
def _no_trace(host: AdapterHost) -> Iterator[None]:
    """Put back random state, adapters and what Trainer changes of a model."""
    use_cache = getattr(host.base.model.config, "use_cache", None)
    state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            host.clear()
            host.base.model.eval()
            if use_cache is not None:
                host.base.model.config.use_cache = use_cache
            random.setstate(state[0])
            np.random.set_state(state[1])


def _check_precision(host: AdapterHost, config: AssistantConfig) -> None:
    """Refuse half precision of another kind than the weights'."""
    for key, other in {"fp16": torch.bfloat16, "bf16": torch.float16}.items():
        if config.training.get(key) and host.base.model.dtype == other:
            raise ConfigError(
                f"training.{key}: the model's weights are {str(other).removeprefix('torch.')}. "
                f"Remove it, or load the model with dtype: float32."
            )


def _check_count(task: Task, config: AssistantConfig) -> None:
    """Refuse to drop the only batch there is."""
    training = config.training
    batch = int(training["per_device_train_batch_size"]) * PartialState().num_processes
    if training.get("dataloader_drop_last") and len(task.train) < batch:
        raise ConfigError(
            f"training.dataloader_drop_last: task '{task.name}' has {len(task.train)} training "
            f"samples, fewer than a batch of {batch}, so nothing would be trained. Remove it, or "
            "lower training.per_device_train_batch_size."
        )
