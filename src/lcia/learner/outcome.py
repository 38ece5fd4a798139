"""What learning a task led to, and what it was made with."""

import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lcia.evaluation.matrix import AccuracyMatrix
from lcia.store.version import Version


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What learning a task led to.

    Attributes:
        task: its name.
        version: the version that holds it, now current.
        group: the adapter group that learned it.
        reason: ``reuse``, ``expand`` or ``first_group``.
        similarity: of the most similar group before, in [0, 1].
        score_base: the base model's score on the task, in percent.
        score_before: the assistant's score on it before learning, in percent.
        before: task to score before learning, in percent, the same tasks as in ``scores``.
        scores: task to score after learning, in percent, all tasks learned so far.
        seconds: time it took.
        choice: what a retrained group might have become, and why it became this; None where
            nothing was measured. See ``lcia.decision.choice.Choice``.
        gate: what the gate checked, one entry a check; see ``lcia.gate.checks.Finding``.
    """

    task: str
    version: int
    group: str
    reason: str
    similarity: float
    score_base: float | None
    score_before: float | None
    before: Mapping[str, float | None]
    scores: Mapping[str, float | None]
    seconds: float
    choice: Mapping[str, Any] | None = None
    gate: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, version: Version, matrix: AccuracyMatrix | None = None) -> "Outcome":
        """Return what led to a version that holds a newly learned task.

        Args:
            version: the version.
            matrix: its scores, where they are at hand: to read many takes a while.
        """
        manifest, matrix = version.manifest, matrix or version.matrix()
        gate = version.gate() or {"checks": ()}
        before, scores = matrix.row(matrix.learned - 1), matrix.row(matrix.learned)
        score_before = before[manifest["task"]]
        if matrix.bounded:  # the rows before rest on other samples
            scores = {task: score for task, score in scores.items() if score is not None}
            before = {t: gate.get("before", {}).get(t) for t in scores}
            before[manifest["task"]] = score_before
        return cls(
            task=manifest["task"],
            version=version.number,
            group=manifest["group"],
            reason=manifest["reason"],
            similarity=manifest["similarity"],
            score_base=matrix.row(0)[manifest["task"]],
            score_before=score_before,
            before=before,
            scores=scores,
            seconds=manifest["seconds"],
            choice=manifest.get("choice"),
            gate=tuple(gate["checks"]),
        )


PACKAGES = ("lcia", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "scipy")
CHECKOUT = Path(__file__).parents[3]


def environment() -> dict[str, str]:
    """Return what shapes results and their times: the machine, Python, packages, the revision.

    ``revision`` is git's name of the commit where lcia runs from a checkout, with ``-dirty``
    behind it where files differ from that; else it is missing.
    """
    return dict(_environment())


@cache
def _environment() -> dict[str, str]:
    found = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if (CHECKOUT / ".git").exists():
        found["revision"] = _revision()
    return found


def _processor() -> str:
    """Return the processor's model: Linux says it in a file, others through ``platform``."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _revision() -> str:
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: {error}"
    return described.stdout.strip()
