"""What determines the result of learning a task, as one hash."""

import hashlib
import json
from typing import Any

from lcia.config import BEFORE, RENAMED, AssistantConfig
from lcia.data.sample import Task
from lcia.grouping.config import GroupingConfig
from lcia.registry import RULES
from lcia.store.version import SCHEMA

GROUPING = (
    "groups",
    "similarity",
    "aggregate",
    "threshold",
    "below",
    "start",
    "route_on",
    "route_threshold",
    "encoder",
)

LATER: dict[str, Any] = {
    "generation.chat_template_kwargs": {},
    "generation.date": None,
    "generation.fold_system": False,
    "generation.chat_template": None,
    "evaluation.samples": None,
}
"""Settings that came after schema 2 and change what is learned, by their path, such as
``grouping.content``, each with the value that means "as before": it counts only when it differs."""

WITHOUT_EFFECT = {"gate"}
"""Settings that do not change what a candidate is, only whether it is committed."""


def fingerprint(config: AssistantConfig, task: Task, *, model: str, schema: int = SCHEMA) -> str:
    """Return the SHA-256, in hex, of all that determines what learning a task gives.

    Args:
        config: the assistant's settings.
        task: the task.
        model: content hash of the base model's files.
        schema: 1 for the hash that lcia took when it hashed a dump of all settings.
    """
    settings = _settings_1(config) if schema == 1 else _settings_2(config, model)
    content = [task.name, task.fingerprint(), settings]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _settings_2(config: AssistantConfig, model: str) -> dict[str, Any]:
    told = {
        "schema": 2,
        "model": model,
        "grouping": _grouping(config.resolve_grouping()),
        **_settings(config),
    }
    for path, before in LATER.items():
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name)
        if value != before:
            told[path] = value
    return told


def _grouping(grouping: GroupingConfig) -> dict[str, Any]:
    return {name: getattr(grouping, name) for name in GROUPING}


def _method(config: AssistantConfig) -> dict[str, Any]:
    """Return the method's settings under their first names; later ones if they differ."""
    name = str(config.method["name"])
    before = BEFORE.get(name, {})
    earlier = {new: old for old, new in RENAMED.get(name, {}).items()}
    told = {k: v for k, v in config.method.items() if k not in before or v != before[k]}
    return {earlier.get(k, k): v for k, v in told.items()}


def _rule(config: AssistantConfig) -> dict[str, Any]:
    earlier = {new: old for old, new in RULES.renamed.items()}
    return {key: earlier.get(v, v) if key == "name" else v for key, v in config.rule.items()}


def _settings_1(config: AssistantConfig) -> dict[str, Any]:
    """Return what ``AssistantConfig.model_dump`` gave at schema 1."""
    return {
        "model": config.model,
        "grouping": config.grouping and _grouping(config.grouping),
        "gate": {"max_drop": config.gate.max_drop},
        **_settings(config),
    }


def _settings(config: AssistantConfig) -> dict[str, Any]:
    """Return what fingerprints of every schema hash alike."""
    return {
        "method": _method(config),
        "rule": _rule(config),
        "adapter": config.adapter,
        "training": config.training,
        "projector": {
            "mode": config.projector.mode,
            "learning_rate": config.projector.learning_rate,
        },
        "pad_images": config.pad_images,
        "quantize": config.quantize,
        "generation": {
            "batch_size": config.generation.batch_size,
            "max_prompt_tokens": config.generation.max_prompt_tokens,
        },
        "dtype": config.dtype,
        "seed": config.seed,
    }
