"""Settings that spread a model over processes: ``training.fsdp`` and ``training.deepspeed``.

lcia shards with torch's ``fully_shard`` itself and leaves ZeRO to DeepSpeed. What neither does here
is refused, for a setting that changes nothing is worse than none.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

from lcia.errors import ConfigError

OURS = ("fsdp", "fsdp_config", "deepspeed")
"""Settings that lcia reads instead of ``TrainingArguments``."""

FSDP_WORDS = {"full_shard": True, "shard_grad_op": False, "auto_wrap": None}
"""Words ``training.fsdp`` may have, and whether parameters are freed after the forward pass."""

FSDP_CONFIG = ("version", "reshard_after_forward", "transformer_layer_cls_to_wrap")

ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Optimizers that step each element by itself: parts of tensors are stepped as the whole."""

FILLED_IN = {
    "bf16": "dtype",
    "fp16": "dtype",
    "gradient_clipping": "training.max_grad_norm",
    "train_batch_size": "training.per_device_train_batch_size",
    "train_micro_batch_size_per_gpu": "training.per_device_train_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "optimizer": "training.optim",
    "scheduler": "training.lr_scheduler_type",
}
"""What DeepSpeed is told by other settings; its own may be ``auto`` only."""

FILLED = [
    "gradient_clipping",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
]

DEEPSPEED_CONFIG = (
    "zero_optimization",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "comms_logger",
    "flops_profiler",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)


def without_sharding(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are left for ``TrainingArguments``."""
    return {key: value for key, value in training.items() if key not in OURS}


def fsdp_options(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how FSDP2 shards; None where it is not asked for.

    Returns:
        ``reshard_after_forward``: whether parameters are freed between forward and backward pass;
        ``layers``: class names of what is gathered at once, empty for the model's own.

    Raises:
        ConfigError: a setting that lcia does not support.
    """
    asked, config = training.get("fsdp"), training.get("fsdp_config")
    if not asked:
        if config:
            raise ConfigError(
                "training.fsdp_config is set and training.fsdp is not. Set training.fsdp: true, or "
                "remove it."
            )
        return None
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(_no_path("fsdp_config", config))
    words = asked.split() if isinstance(asked, str) else asked if isinstance(asked, list) else []
    if asked is not True and (not words or not set(words) <= set(FSDP_WORDS)):
        raise ConfigError(
            f"training.fsdp is {asked!r}; expected true, or of {', '.join(FSDP_WORDS)}. lcia "
            "shards parameters over all processes, without offloading."
        )
    options = {key.removeprefix("fsdp_"): value for key, value in (config or {}).items()}
    for key in options:
        if key not in FSDP_CONFIG:
            raise ConfigError(
                f"training.fsdp_config.{key} is not supported; expected {', '.join(FSDP_CONFIG)}. "
                "For activation checkpointing set training.gradient_checkpointing."
            )
    if str(options.get("version", 2)) != "2":
        raise ConfigError(
            f"training.fsdp_config.version is {options['version']!r}; lcia shards by version 2 "
            "only. Remove it."
        )
    reshard = options.get("reshard_after_forward", "shard_grad_op" not in words)
    if not isinstance(reshard, bool):
        raise ConfigError(
            f"training.fsdp_config.reshard_after_forward is {reshard!r}; expected true or false."
        )
    layers = options.get("transformer_layer_cls_to_wrap") or []
    names = layers.split(",") if isinstance(layers, str) else layers
    return {"reshard_after_forward": reshard, "layers": [str(name).strip() for name in names]}


def deepspeed_config(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return DeepSpeed's configuration, for Trainer to fill in; None where none is asked for.

    Raises:
        ConfigError: a setting that lcia does not support.
    """
    asked = training.get("deepspeed")
    if not asked:
        return None
    if not isinstance(asked, Mapping):
        raise ConfigError(_no_path("deepspeed", asked))
    for key, value in asked.items():
        if key not in FILLED_IN and key not in DEEPSPEED_CONFIG:
            known = ", ".join(DEEPSPEED_CONFIG)
            raise ConfigError(f"training.deepspeed.{key} is not supported; expected {known}.")
        if key in FILLED_IN and value not in ("auto", {"enabled": "auto"}):
            raise ConfigError(
                f"training.deepspeed.{key} is {value!r}; {FILLED_IN[key]} says it. Remove it."
            )
    _check_zero(asked.get("zero_optimization"))
    return {
        **{key: value for key, value in asked.items() if key in DEEPSPEED_CONFIG},
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        **dict.fromkeys(FILLED, "auto"),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it would be compiled, and rounds differently
    }


def _check_zero(zero: Any) -> None:
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    if stage not in (1, 2, 3) or isinstance(stage, bool):
        raise ConfigError(
            f"training.deepspeed.zero_optimization.stage is {stage!r}; expected 1, 2 or 3. For no "
            "sharding remove training.deepspeed: several processes then train under DDP."
        )
    for key, value in zero.items():
        off = value in (None, False, {"device": "none"}) or (value == 1 and value is not True)
        if not off and ("offload" in key or key.startswith(("zero_hpz", "zero_quant", "mics_"))):
            raise ConfigError(
                f"training.deepspeed.zero_optimization.{key} is {value!r}, which lcia does not "
                "support: optimizer and parameters stay where they are trained. Remove it."
            )


def check_sharding(training: Mapping[str, Any], *, quantize: str | None, dtype: str) -> None:
    """Check what spreads a model, and that the other settings can work under it.

    Raises:
        ConfigError: they cannot.
    """
    fsdp, deepspeed = fsdp_options(training), deepspeed_config(training)
    if fsdp is None and deepspeed is None:
        return
    name = "training.fsdp" if deepspeed is None else "training.deepspeed"
    if fsdp is not None and deepspeed is not None:
        raise ConfigError(
            "training.fsdp and training.deepspeed: one of them can shard. Remove one."
        )
    optim = str(training.get("optim", ELEMENTWISE[0]))
    if optim not in ELEMENTWISE:
        raise ConfigError(
            f"training.optim is {optim!r}, which needs whole tensors, and {name} gives each "
            f"process a part of them. Choose one of {', '.join(ELEMENTWISE)}."
        )
    if quantize is not None:
        raise ConfigError(
            f"quantize is {quantize!r}, and {name} cannot spread quantized weights. Remove one."
        )
    if deepspeed is not None and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "training.deepspeed: DeepSpeed is not installed (pip install lcia[deepspeed])."
        )
    if fsdp is not None and (training.get("fp16") or dtype == "float16"):
        raise ConfigError(
            "training.fsdp: float16 needs loss scaling, which FSDP2 does not have. Use bfloat16."
        )


def _no_path(key: str, value: Any) -> str:
    return (
        f"training.{key} is {value!r}; expected the configuration itself, as a mapping: it is "
        "stored in the assistant."
    )
