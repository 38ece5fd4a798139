"""What a job may ask for, checked against the assistant before it is queued."""

import secrets
from collections.abc import Mapping
from typing import Any

from lcia.data.sample import check_name
from lcia.errors import ConfigError
from lcia.learner import Store
from lcia.registry import SCORERS

AUTO = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
SETTINGS = ("lcia_scorer", "lcia_instruction", "lcia_max_new_tokens")
"""Keys of a job's metadata that say what OpenAI's API has no field for."""


class OrderError(ConfigError):
    """A job cannot be ordered so.

    Args:
        message: what was found, what was expected.
        param: the field at fault.
    """

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


def order(
    store: Store,
    *,
    model: str = "assistant",
    task: str | None = None,
    seed: int | None = None,
    hyperparameters: Mapping[str, Any] = AUTO,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the columns of a job, all but its files.

    Args:
        store: the assistant that learns.
        model: what is taught: the assistant, by this name or that of its base model.
        task: name of the task; None: a new one.
        seed: None: the assistant's.
        hyperparameters: epochs, batch size and multiplier, or ``auto``.
        metadata: the client's own; keys of ``SETTINGS`` are read.

    Raises:
        OrderError: a field cannot be used.
        StoreError: the assistant is damaged.
    """
    config = store.config
    if model not in ("assistant", config.model):
        raise OrderError(
            f"The model {model[:100]!r} cannot be fine-tuned; expected 'assistant': what is "
            "learned adds to its current version.",
            param="model",
        )
    task = task or f"task-{secrets.token_hex(4)}"
    try:
        check_name(task)
    except ConfigError as error:
        raise OrderError(f"'suffix': {error}", param="suffix") from error
    if task in store.current.matrix().tasks:
        raise OrderError(
            f"'suffix': the assistant already knows a task {task!r}; give the new one another "
            "name.",
            param="suffix",
        )
    return {
        "model": model,
        "task": task,
        "seed": config.seed if seed is None else seed,
        "hyperparameters": dict(hyperparameters),
        "metadata": None if metadata is None else dict(metadata),
        "settings": _settings(metadata or {}),
    }


def _settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return fields of ``TaskConfig`` that metadata name."""
    settings: dict[str, Any] = {}
    for key, value in metadata.items():
        if key.startswith("lcia_") and key not in SETTINGS:
            raise OrderError(
                f"'metadata.{key}': lcia reads {', '.join(SETTINGS)}.", param=f"metadata.{key}"
            )
        if key in SETTINGS:
            settings[key.removeprefix("lcia_")] = value
    if "scorer" in settings and settings["scorer"] not in SCORERS.names():
        known = ", ".join(SCORERS.names())
        raise OrderError(
            f"'metadata.lcia_scorer': expected one of {known}.", param="metadata.lcia_scorer"
        )
    if "max_new_tokens" in settings:
        found = settings["max_new_tokens"]
        if not (found.isascii() and found.isdigit() and 1 <= int(found) <= 100_000):
            raise OrderError(
                "'metadata.lcia_max_new_tokens': expected a whole number from 1.",
                param="metadata.lcia_max_new_tokens",
            )
        settings["max_new_tokens"] = int(found)
    return settings
