"""Train one group's adapter on one task with transformers' Trainer."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import send_to_device
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from lcia.config import ADAPTER_DEFAULTS, TRAINING_DEFAULTS, AssistantConfig
from lcia.config.sharding import deepspeed_config, fsdp_options, without_sharding
from lcia.data.sample import Sample, Task
from lcia.decision.correcting import UntilTaught, balanced, not_corrected
from lcia.distributed import zero
from lcia.distributed.checkpoint import TrainingState, checkpoint_step, last_checkpoint
from lcia.distributed.launch import joined, launch_of, state
from lcia.distributed.plan import Collate, Examples, same_steps
from lcia.distributed.processes import on_main
from lcia.errors import ConfigError
from lcia.files import discard, place_copy
from lcia.learner.trainer import MethodTrainer, ProjectorState
from lcia.methods.base import Method, TaskContext
from lcia.models.host import AdapterHost
from lcia.models.lora import save_expert_routers
from lcia.models.visual import PROJECTOR
from lcia.store.finite import FiniteSteps
from lcia.store.journal import Journal
from lcia.store.samples import REMEMBERED, VALIDATION, Kept, keep_with, kept_with

logger = logging.getLogger(__name__)

CARRIED = "method_state.safetensors"
"""Tensors a method leaves for the group's next task, beside the adapter's own files."""

TRAINED, UNTRAINED = "adapter", "untrained"
"""Folders of a run: a task begun untrained and then trained after all must not find the other."""

EVERY_STEP = {"logging_strategy": "steps", "logging_steps": 1, "logging_nan_inf_filter": False}
"""What Trainer logs, whatever the settings say: the journal has every step as it was."""


def train_adapter(
    host: AdapterHost,
    task: Task,
    *,
    method: Method,
    config: AssistantConfig,
    group: str,
    start: Path | None,
    own: Path | None,
    projector: Path | None = None,
    task_index: int,
    folder: Path,
    journal: Journal,
    train: bool = True,
    choose: Callable[..., TaskContext] | None = None,
    held: Sequence[Sample] = (),
    alone: bool = False,
) -> Path:
    """Train a group's adapter on a task, resuming from the last checkpoint if there is one.

    Args:
        host: holds the base model.
        task: the task.
        method: what differs from plain training.
        config: adapter and training settings, seed.
        group: id of the group.
        start: the adapter to train on, the group's own or a copy; None for a fresh one.
        own: the group's adapter so far, with what the method left there; None for a new group.
        projector: the adapter whose projector to train on, if not that of ``start``.
        task_index: how many tasks were learned before.
        folder: the run's folder; gets ``checkpoints/`` and the adapter.
        journal: told every step.
        train: False only opens the adapter and lets the method remember.
        choose: called after training with model, context and the samples it ran through: makes
            the parameters the best candidate's, and returns the context that leaves.
        held: validation samples of the task.
        alone: whether it is trained on without what the group remembers.

    Returns:
        The folder of the adapter, in peft's format.

    Raises:
        ConfigError: the method cannot work where parameters are spread over ranks.
        DivergenceError: a step's loss, gradient or parameters are not finite.
    """
    seed = config.seed + 1000 * task_index
    set_seed(seed)
    model = method.open(host, start, {**ADAPTER_DEFAULTS, **config.adapter})
    if projector is not None and host.projector is not None:
        host.projector.load(projector)
    context = context_of(host, model, task, task_index=task_index, group=group, own=own, seed=seed)
    context = replace(context, held=held, measured=choose is not None, alone=alone)
    target = folder / (TRAINED if train else UNTRAINED)
    on_main(lambda: discard(_draft(target)))  # what a killed process left half written
    if not train:
        on_main(lambda: model.save_pretrained(_draft(target)))
        samples = _kept(method, context, own=own, held=held)
        return _place(target, host, model, state={}, samples=samples)
    checkpoint = last_checkpoint(folder / "checkpoints")
    journal.rewind(checkpoint_step(checkpoint) if checkpoint else 0)
    trainer, until = _trainer(
        host,
        model,
        method,
        context,
        config=config,
        folder=folder,
        journal=journal,
        checkpoint=checkpoint,
    )
    model.train()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if until is not None:
        until.settle(model, journal)
    context = context if choose is None else choose(model, context, passes=_passes(trainer))
    state = method.finish(context)
    trainer.save_model(str(_draft(target)))  # gathers what is sharded
    trainer.close()
    samples = _kept(method, context, own=own, held=held)
    return _place(target, host, model, state=state, samples=samples)


def _trainer(
    host: AdapterHost,
    model: Any,
    method: Method,
    context: TaskContext,
    *,
    config: AssistantConfig,
    folder: Path,
    journal: Journal,
    checkpoint: Path | None,
) -> tuple[MethodTrainer, UntilTaught | None]:
    """Return the Trainer with all that acts on it, and what ends it when corrections are taught."""
    examples = _examples(host, method, context)
    trainer = build_trainer(
        host, model, method, context, config=config, folder=folder, examples=examples
    )
    method.attach(trainer, context)
    if host.projector is not None and checkpoint is not None:
        host.projector.load(checkpoint)
    for callback in (FiniteSteps(context.task.name), _Steps(journal, task=context.task.name)):
        trainer.add_callback(callback)
    until = _until_taught(host, context, trainer)
    # Last, so that a checkpoint is marked complete after every other callback wrote its part.
    keep = config.training.get("save_total_limit", 2)
    scaler = lambda: trainer.accelerator.scaler  # noqa: E731
    trainer.add_callback(TrainingState(checkpoint, scaler, launch=trainer.launch, keep=keep))
    return trainer, until


def _until_taught(
    host: AdapterHost, context: TaskContext, trainer: MethodTrainer
) -> UntilTaught | None:
    """Let training end when the task's corrections are taught, where it teaches any."""
    if not context.task.corrects:
        return None
    if trainer.launch.spreads:
        logger.warning(
            "task '%s': parameters are spread over processes, so whether its corrections are "
            "taught is not looked at: all steps are trained.",
            context.task.name,
        )
        return None
    until = UntilTaught(host, context)
    trainer.add_callback(until)
    return until


def _kept(
    method: Method, context: TaskContext, *, own: Path | None, held: Sequence[Sample]
) -> dict[str, Kept]:
    """Return the samples that stay with the group, by the file they are stored in."""
    name, own = context.task.name, own if context.reused else None
    # The objects themselves: a task may have the same sample as another.
    tasks = [task for _, task in _stored(own, REMEMBERED, context.task)]
    earlier = dict(zip(map(id, context.remembered), tasks, strict=True))
    remembered = [(sample, earlier.get(id(sample), name)) for sample in method.remember(context)]
    if not method.keeps_held_back:
        return {REMEMBERED: remembered}
    before = _stored(own, VALIDATION, context.task)
    return {REMEMBERED: remembered, VALIDATION: [*before, *((sample, name) for sample in held)]}


def _stored(own: Path | None, name: str, task: Task) -> Kept:
    """Return what a group keeps in a file, as far as the task does not correct it."""
    return not_corrected(kept_with(own, name), task) if own else []


def context_of(
    host: AdapterHost,
    model: Any,
    task: Task,
    *,
    task_index: int,
    group: str,
    own: Path | None = None,
    seed: int,
) -> TaskContext:
    """Return what a method sees of a task: see ``train_adapter`` for the arguments."""
    return TaskContext(
        task=task,
        task_index=task_index,
        group=group,
        reused=own is not None,
        parameters={n: p for n, p in model.named_parameters() if p.requires_grad},
        encode=lambda samples: send_to_device(
            host.chat.collate(host.chat.encode_examples(samples)),
            host.base.model.device,
        ),
        carried=load_file(own / CARRIED) if own and (own / CARRIED).is_file() else {},
        remembered=[sample for sample, _ in _stored(own, REMEMBERED, task)],
        seed=seed,
    )


def build_trainer(
    host: AdapterHost,
    model: Any,
    method: Method,
    context: TaskContext,
    *,
    config: AssistantConfig,
    folder: Path,
    examples: Any,
) -> MethodTrainer:
    """Return the Trainer of a task, without the method's callbacks.

    Args:
        host: holds the base model.
        model: with the adapter to train.
        method: adds its loss.
        context: what the method sees of the task.
        config: training settings.
        folder: gets ``checkpoints/``.
        examples: encoded examples, as ``ChatFormat.collate`` takes them.

    Raises:
        ConfigError: the method cannot work where parameters are spread over ranks.
    """
    trainer = MethodTrainer(
        method=method,
        model=model,
        args=_arguments(host, config, seed=context.seed, folder=folder),
        train_dataset=Examples(examples),
        data_collator=Collate(host.chat.collate),
        projector=host.projector,
        projector_learning_rate=config.projector.learning_rate,
        launch=launch_of(config.training),
        fsdp=fsdp_options(config.training),
    )
    trainer.remove_callback(PrinterCallback)
    if host.projector is not None:
        trainer.add_callback(ProjectorState(host.projector))
    return trainer


def _examples(host: AdapterHost, method: Method, context: TaskContext) -> list[Any]:
    samples, task = method.samples(context), context.task
    if task.corrects:
        samples = balanced(samples, task)
    examples = host.chat.encode_examples(samples)
    if cut := sum(example.truncated for example in examples):
        logger.warning(
            "task '%s': %d of %d prompts are %s and lose their middle.",
            task.name,
            cut,
            len(examples),
            _too_long(host, longest_answer=max(len(example.answer_ids) for example in examples)),
        )
    return examples


def _too_long(host: AdapterHost, *, longest_answer: int) -> str:
    """Return what prompts are that are cut: the setting is the bound, or the model itself."""
    most, positions = host.chat.max_prompt_tokens, host.base.facts.positions
    if positions is None or positions >= most + longest_answer:
        return f"longer than {most} tokens"
    return f"too long for the {positions} tokens that the model reads with their answers"


def _passes(trainer: MethodTrainer) -> int:
    """Return how many samples training ran through, those of each epoch and of all processes."""
    args = trainer.args
    each = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return int(trainer.state.global_step * each)


def _arguments(
    host: AdapterHost, config: AssistantConfig, *, seed: int, folder: Path
) -> TrainingArguments:
    dtype = str(host.base.model.dtype).removeprefix("torch.")
    settings = {
        "disable_tqdm": True,
        "report_to": "none",
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "use_cpu": host.base.model.device.type == "cpu",
        "dataloader_pin_memory": host.base.model.device.type == "cuda",
        **TRAINING_DEFAULTS,
        **without_sharding(config.training),
    }
    launch = launch_of(config.training)
    settings |= same_steps(last_checkpoint(folder / "checkpoints"), settings, launch)
    if joined() is not None:  # the processes are joined; TrainingArguments would join them anew
        configured = dict(settings.get("accelerator_config") or {})
        settings["accelerator_config"] = {**configured, "use_configured_state": True}
    if launch.zero:
        zero.start_anew(state())
        settings["deepspeed"] = deepspeed_config(config.training)
    fixed = {
        "output_dir": str(folder / "checkpoints"),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_total_limit": None,  # TrainingState removes older ones
        "save_only_model": True,
        "remove_unused_columns": False,
        **EVERY_STEP,
    }
    return TrainingArguments(**{**settings, **fixed})


def check_spread(
    method: Method, config: AssistantConfig, *, projector: bool, images: bool = False
) -> None:
    """Check that a method can train what is spread over processes, if it is to be.

    Args:
        method: the configured one.
        config: says what spreads the model.
        projector: whether a projector is trained.
        images: whether the model reads images.

    Raises:
        ConfigError: it cannot.
    """
    launch = launch_of(config.training)
    if images and launch.zero == 3:
        raise ConfigError(
            "training.deepspeed: ZeRO-3 gathers the vision tower where a batch has one, and "
            "waits for ever for a process whose batch has none. Use training.fsdp, or stage 1 or 2."
        )
    if launch.spreads and not method.sharded:
        raise ConfigError(
            f"method {config.method['name']} reads whole parameters and gradients, which "
            f"{launch.sharding} spreads over processes. Train it on one process or with plain DDP: "
            "remove training.fsdp and training.deepspeed."
        )
    if projector and launch.spreads:
        raise ConfigError(
            f"projector: cannot be trained where {launch.sharding} spreads the model over "
            "processes. Use DDP, or projector: frozen."
        )


def _draft(target: Path) -> Path:
    return target.with_name(f".{target.name}-draft")


def _place(
    target: Path,
    host: AdapterHost,
    model: Any,
    *,
    state: Mapping[str, Any],
    samples: Mapping[str, Kept],
) -> Path:
    """Complete the draft of an adapter's folder with what the method leaves; put it in place."""
    draft = _draft(target)

    def complete() -> None:
        for name in ("training_args.bin", "README.md"):
            (draft / name).unlink(missing_ok=True)
        save_expert_routers(model, draft)
        if host.projector is not None:
            host.projector.save(draft)
        if state:
            tensors = {name: t.detach().cpu().contiguous() for name, t in state.items()}
            save_file(tensors, draft / CARRIED)
        for name, kept in samples.items():
            keep_with(draft, name, kept)
        place_copy(draft, target)

    on_main(complete)
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
        self.journal.write(
            "step",
            task=self.task,
            step=state.global_step,
            steps=state.max_steps,
            eta_s=round(pace * (state.max_steps - state.global_step), 1),
            **logs,
        )


def shared_projector(adapters: Mapping[str, tuple[str, Path]]) -> Path | None:
    """Return an adapter that has the projector all of them share; None before the first task."""
    folders = (folder for _, folder in adapters.values())
    return next((folder for folder in folders if (folder / PROJECTOR).is_file()), None)


def share_projector(
    trained: Path, others: Mapping[str, tuple[str, Path]], *, folder: Path
) -> dict[str, Path]:
    """Copy the other groups' adapters, each with the projector that was just trained.

    A version's folders never change, and the answers of every group do: so each gets a new one,
    and all that goes by folder (answers kept, roll-back, checksums) stays right.

    Args:
        trained: the adapter with that projector.
        others: group to the key and folder of its adapter.
        folder: where to write the copies.

    Returns:
        Group to the folder of its copy.
    """

    def copy(source: Path, target: Path) -> None:
        place_copy(source, target)
        shutil.copyfile(trained / PROJECTOR, target / PROJECTOR)

    for group, (_, source) in others.items():
        on_main(partial(copy, source, folder / group))
    return {group: folder / group for group in others}
