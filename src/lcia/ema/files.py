"""The state of a dynamic EMA as one safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from lcia.ema.balance import STEP_L1, Rule
from lcia.errors import TrainingError

FILE_NAME = "dynamic_ema.safetensors"
SCHEMA = "2"
"""1 knew no step before the last: rules that read steps cannot go on from it."""


def save_state(path: Path, state: Mapping[str, Any], *, rule: Rule) -> None:
    """Write a ``DynamicEMA.state_dict()``; the file appears whole or not at all."""
    flat = {"stats": state["stats"]}
    for group, tensors in state.items():
        if group != "stats":
            flat |= {f"{group}/{name}": values.contiguous() for name, values in tensors.items()}
    partial = path.with_suffix(".partial")
    save_file(flat, partial, metadata={"schema": SCHEMA, "rule": _describe(rule)})
    partial.replace(path)


def load_state(path: Path, *, rule: Rule) -> dict[str, Any]:
    """Read what ``save_state`` wrote.

    Raises:
        TrainingError: there is no such file, or it was written under another rule, or by an
            earlier lcia without what the rule needs.
    """
    if not path.is_file():
        raise TrainingError(
            f"{path}: no such file. It holds the average that training resumes with; the "
            "checkpoint was written without dynamic EMA, or from another folder."
        )
    groups = ("shadow", "grad_prev", "theta_prev", "theta_before", STEP_L1)
    state: dict[str, Any] = {group: {} for group in groups}
    with safe_open(path, framework="pt") as file:
        written, schema = file.metadata()["rule"], file.metadata()["schema"]
        if schema == "1" and rule.needs_previous_parameters:
            raise TrainingError(
                f"{path}: was written by an earlier lcia, whose rule paired a gradient's change "
                "with the wrong step; its average cannot go on. Delete the folders checkpoint-* "
                f"in {path.parent.parent} to train from the start."
            )
        written = written.replace('"name": "Next"', '"name": "Toolkit"')  # once called so
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
