"""The state of a dynamic EMA as one safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from lcia.ema.balance import Rule
from lcia.errors import TrainingError

FILE_NAME = "dynamic_ema.safetensors"


def save_state(path: Path, state: Mapping[str, Any], *, rule: Rule) -> None:
    """Write a ``DynamicEMA.state_dict()``; the file appears whole or not at all."""
    flat = {"stats": state["stats"]}
    for group, tensors in state.items():
        if group != "stats":
            flat |= {f"{group}/{name}": values.contiguous() for name, values in tensors.items()}
    partial = path.with_suffix(".partial")
    save_file(flat, partial, metadata={"schema": "1", "rule": _describe(rule)})
    partial.replace(path)


def load_state(path: Path, *, rule: Rule) -> dict[str, Any]:
    """Read what ``save_state`` wrote.

    Raises:
        TrainingError: there is no such file, or it was written under another rule.
    """
    if not path.is_file():
        raise TrainingError(
            f"{path}: no such file. It holds the average that training resumes with; the "
            "checkpoint was written without dynamic EMA, or from another folder."
        )
    state: dict[str, Any] = {"shadow": {}, "grad_prev": {}, "theta_prev": {}}
    with safe_open(path, framework="pt") as file:
        written = file.metadata()["rule"]
        if written != _describe(rule):
            raise TrainingError(
                f"{path}: written under rule {written}; this run has {_describe(rule)}. "
                "Resume with the same rule, or start anew."
            )
        for key in file.keys():  # noqa: SIM118 (safe_open has keys() but is no mapping)
            group, _, name = key.partition("/")
            if name:
                state[group][name] = file.get_tensor(key)
            else:
                state[group] = file.get_tensor(key)
    return state


def _describe(rule: Rule) -> str:
    return json.dumps({"name": type(rule).__name__, **asdict(rule)}, sort_keys=True)
