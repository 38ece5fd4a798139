"""Which of transformers' ``TrainingArguments`` a user may set, and what of them can work."""

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

from lcia.errors import ConfigError

logger = logging.getLogger(__name__)

SET_BY_LCIA = ("output_dir", "seed", "data_seed", "save_strategy", "remove_unused_columns")

WORKS = frozenset(
    {
        "per_device_train_batch_size",
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "optim",
        "optim_args",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "gradient_accumulation_steps",
        "average_tokens_across_devices",
        "max_grad_norm",
        "bf16",
        "fp16",
        "tf32",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "torch_empty_cache_steps",
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "logging_nan_inf_filter",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "save_steps",
        "save_total_limit",
        "full_determinism",
        "use_cpu",
        "dataloader_drop_last",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "train_sampling_strategy",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
        "ddp_backend",
        "ddp_timeout",
        "fsdp",
        "fsdp_config",
        "deepspeed",
        "local_rank",
    }
)
"""Fields known to work; every other keeps its default."""

LOGGED = ("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter")

_SCORES = "lcia scores held-out samples itself, after every task"
_RESUMES = "an interrupted run resumes by itself, to the bit"
REASONS = {
    "eval": _SCORES,
    "per_device_eval": _SCORES,
    "do_": "lcia trains, answers and scores in one transaction",
    "load_best_model_at_end": f"{_SCORES}, and keeps what training ends with",
    "metric_for_best_model": _SCORES,
    "greater_is_better": _SCORES,
    "resume_from_checkpoint": _RESUMES,
    "ignore_data_skip": _RESUMES,
    "restore_callback_states": _RESUMES,
    "dataloader_in_order": _RESUMES,
    "save_only_model": "lcia writes checkpoints itself",
    "enable_jit_checkpoint": "lcia writes checkpoints itself",
    "auto_find_batch_size": "the batch size shapes the result. Halve "
    "per_device_train_batch_size and double gradient_accumulation_steps instead",
    "push_to_hub": "the assistant stays in its folder; 'lcia export' writes adapters to share",
    "hub_": "the assistant stays in its folder; 'lcia export' writes adapters to share",
    "label_smoothing_factor": "the loss is that of the answers' tokens",
    "torch_compile": "adapters are put on the model and taken off it, which compiles it again",
    "use_liger_kernel": "it replaces code of the model that earlier answers were made with",
    "use_cache": "training keeps no cache",
    "neftune_noise_alpha": "Trainer looks for it where an adapter hides the embedding",
    "optim_target_modules": "its optimizers are not supported",
}
"""Why a field is refused, by how it begins; the others are not known to work."""

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
BITSANDBYTES = (
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_8bit",
    "lion_32bit",
    "paged_lion_8bit",
    "paged_lion_32bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_8bit",
    "paged_ademamix_32bit",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
)
MEASURED = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow a measured score, of which there is none while training."""

COUNTS = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "torch_empty_cache_steps": 1,
    "logging_steps": 1,
    "save_total_limit": 2,
    "ddp_timeout": 1,
}
"""Whole numbers and their least value. The last checkpoint goes only when the next is complete."""

RANGES: Mapping[str, tuple[float, float, str]] = {
    "num_train_epochs": (0, math.inf, "a number above 0"),
    "learning_rate": (-1e-300, math.inf, "a number from 0 up"),
    "weight_decay": (-1e-300, math.inf, "a number from 0 up"),
    "adam_beta1": (-1e-300, 1, "a number from 0 up and below 1"),
    "adam_beta2": (-1e-300, 1, "a number from 0 up and below 1"),
    "adam_epsilon": (0, math.inf, "a number above 0"),
    "max_grad_norm": (-1e-300, math.inf, "a number from 0 up"),
    "warmup_steps": (-1e-300, math.inf, "a number from 0 up: steps, or below 1 a share of them"),
    "save_steps": (0, math.inf, "a number above 0: steps, or below 1 a share of them"),
}
"""Numbers between two others, both left out."""

NULLABLE = ("torch_empty_cache_steps", "save_total_limit")


def check_fields(settings: Mapping[str, Any]) -> None:
    """Check names and ranges of training settings.

    Raises:
        ConfigError: a field that lcia sets or that is not known to work, or a number out of range.
    """
    from transformers import TrainingArguments

    fields = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    for key, value in settings.items():
        if key in SET_BY_LCIA:
            raise ConfigError(f"training.{key} is set by lcia. Remove it.")
        default = fields[key].default
        if key not in WORKS and value != default and (value or default):
            why = next((w for start, w in REASONS.items() if key.startswith(start)), None)
            raise ConfigError(
                f"training.{key} is {value!r}; {why or 'it is not known to work with lcia'}. "
                "Remove it."
            )
        if not (value is None and key in NULLABLE):
            _check_number(key, value)
    if settings.get("train_sampling_strategy", "random") not in ("random", "sequential"):
        raise ConfigError(
            f"training.train_sampling_strategy is {settings['train_sampling_strategy']!r}; "
            "expected 'random' or 'sequential'."
        )
    _check_choices(settings)
    if used := [key for key in LOGGED if key in settings]:
        logger.warning("training.%s changes nothing: the journal has every step.", used[0])


def _check_choices(settings: Mapping[str, Any]) -> None:
    """Say what lcia works with before transformers lists what it does."""
    optim, schedule = (_value(settings.get(key, "")) for key in ("optim", "lr_scheduler_type"))
    if optim and optim not in OPTIMIZERS + BITSANDBYTES:
        raise ConfigError(
            f"training.optim is {optim!r}; expected one of {', '.join(OPTIMIZERS)}, or of "
            f"bitsandbytes: {', '.join(BITSANDBYTES)}."
        )
    if schedule in MEASURED:
        raise ConfigError(
            f"training.lr_scheduler_type is {schedule!r}, which follows a score that is measured "
            "while training; there is none. Choose another."
        )


def check_parts(arguments: Any) -> None:
    """Make the optimizer, the schedule and the reporters of training settings, for nothing.

    Precision is compared with the device: accelerate would leave out what this one cannot.

    Args:
        arguments: the ``TrainingArguments``.

    Raises:
        ConfigError: one of them cannot be made, for example as a package is missing.
    """
    import torch
    from transformers import Trainer, get_scheduler
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    optim, schedule = _value(arguments.optim), _value(arguments.lr_scheduler_type)
    try:
        arguments.get_process_log_level()
    except LookupError as error:
        raise ConfigError(
            f"training.log_level is {arguments.log_level!r}; expected one of debug, info, warning, "
            "error, critical, passive."
        ) from error
    if arguments.fp16 and arguments.use_cpu:
        raise ConfigError(
            "training.fp16: accelerate mixes in float16 on accelerators only, and this model is on "
            "a CPU. Set training.bf16, or dtype: bfloat16."
        )
    try:
        where = "optim"
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        kind([torch.nn.Parameter(torch.zeros(2))], **options)
        where = "lr_scheduler_type"
        rate = arguments.learning_rate
        stand_in = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=rate)
        get_scheduler(
            schedule,
            optimizer=stand_in,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
        where = "report_to"
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
    except CANNOT_BE_MADE as error:
        found = {"optim": optim, "lr_scheduler_type": schedule, "report_to": arguments.report_to}
        raise ConfigError(
            f"training.{where} is {found[where]!r}, which cannot be made: {one_line(error)}"
        ) from error


CANNOT_BE_MADE = (
    ImportError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
)
"""What settings that cannot work end in, wherever libraries first use them."""


def one_line(error: BaseException) -> str:
    """Return what an error says, on one line that ends as a sentence does."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _value(name: Any) -> str:
    return str(getattr(name, "value", name))


def _check_number(key: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_whole = is_number and isinstance(value, int)
    if key == "max_steps" and not (is_whole and (value >= 1 or value == -1)):
        wanted = "a whole number from 1 up, or -1 for num_train_epochs"
    elif key in COUNTS and not (is_whole and value >= COUNTS[key]):
        wanted = f"a whole number from {COUNTS[key]} up"
    elif key in RANGES and not (is_number and RANGES[key][0] < value < RANGES[key][1]):
        wanted = RANGES[key][2]
    else:
        return
    raise ConfigError(f"training.{key} is {value!r}; expected {wanted}.")
