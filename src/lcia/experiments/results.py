"""What one sub-run of an experiment reached: written once, read by reports and comparisons."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors import safe_open

from lcia.data import Task
from lcia.distributed.processes import everyone, on_main
from lcia.evaluation.generate import (
    Prediction,
    evaluate,
    read_predictions,
    scores_percent,
)
from lcia.evaluation.kept import Keep
from lcia.evaluation.metrics import (
    MEASURES,
    averaging,
    general_ability,
    routing_accuracy,
    summarise,
)
from lcia.files import read_json, read_jsonl, write_json, write_jsonl
from lcia.grouping import InstructionCodebook, Router
from lcia.learner import ContinualLearner, Store, Version
from lcia.reports.collect import step_records
from lcia.store.samples import REMEMBERED, VALIDATION

HELD_OUT = {model: f"held_out-{model}.jsonl" for model in ("base", "assistant")}
"""Files of the predictions on tasks that were never trained."""

TASK_GIVEN = "task_given.jsonl"
"""Predictions on the tests of all tasks, each by the group that learned the task."""

SIZES = ("trainable_parameters", "stored_parameters", "stored_samples")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one assistant of an experiment reached: the content of ``metrics.json``.

    Attributes:
        label: name of method, rule and grouping in tables.
        method: the method's name.
        seed: its seed.
        order: name of the order of tasks.
        folder: of the sub-run.
        metrics: every measure of ``lcia.evaluation.MEASURES``; None where it is unavailable.
    """

    label: str
    method: str
    seed: int
    order: str
    folder: Path
    metrics: Mapping[str, float | None]

    @property
    def store(self) -> Store:
        """The assistant."""
        return Store.open(self.folder / "assistant")


def read_result(folder: Path) -> Result:
    """Return the result of a finished sub-run.

    Raises:
        StoreError: the folder holds no result.
    """
    found = read_json(folder / "metrics.json")
    return Result(
        label=found["label"],
        method=found["method"]["name"],
        seed=found["seed"],
        order=found["order"],
        folder=folder,
        metrics={name: found["metrics"].get(name) for name in MEASURES},
    )


def answer_held_out(learner: ContinualLearner, tasks: Sequence[Task], *, folder: Path) -> None:
    """Answer tasks that were never trained, with the base model and with the assistant.

    Args:
        learner: of the finished assistant.
        tasks: their test samples are answered.
        folder: gets one file of predictions for each of the two; what is there stays.
    """
    version = learner.store.current
    models = {
        "base": (InstructionCodebook(), {}),
        "assistant": (version.codebook(), version.adapters),
    }
    for model, (codebook, adapters) in models.items():
        _answer_into(
            folder / HELD_OUT[model],
            partial(
                evaluate,
                learner.host,
                tasks,
                route=Router(codebook).route,
                adapters=adapters,
                batch_size=learner.config.generation.batch_size,
            ),
        )


def answer_task_given(learner: ContinualLearner, *, folder: Path) -> None:
    """Answer the held-out samples of all tasks past the router; what is there stays."""
    known = learner.store.current.predictions()
    _answer_into(folder / TASK_GIVEN, partial(learner.evaluate, task_given=True, known=known))


def _answer_into(path: Path, answer: Callable[..., list[Prediction]]) -> None:
    """Write predictions into a file that is not there; every process of a run calls this.

    Args:
        path: of the file; answers are kept beside it as they come.
        answer: told where to keep them.
    """
    if not everyone(lambda: not path.is_file()):
        return
    keep = Keep(path=path.with_suffix(".answers.jsonl"))
    predictions = answer(keep=keep)

    def write() -> None:
        write_jsonl(path, (prediction.to_json() for prediction in predictions))
        keep.path.unlink()

    on_main(write)


def write_result(folder: Path, identity: Mapping[str, Any], store: Store) -> None:
    """Write journal, predictions and metrics of a finished assistant.

    Args:
        folder: of the sub-run; ``metrics.json`` appears last.
        identity: label, method, seed and order of the sub-run.
        store: the assistant.
    """
    versions = store.history()
    write_jsonl(
        folder / "journal.jsonl",
        ({"version": v.number, **event} for v in versions for event in v.journal()),
    )
    write_jsonl(
        folder / "predictions.jsonl",
        ({"t": t, **prediction.to_json()} for t, prediction in _cells(versions)),
    )
    last = versions[-1]
    held_out = {
        model: scores_percent(read_predictions(folder / name))
        for model, name in HELD_OUT.items()
        if (folder / name).is_file()
    }
    metrics = {**summarise(last.matrix()), **_measures(store, versions)}
    if (folder / TASK_GIVEN).is_file():
        given = scores_percent(read_predictions(folder / TASK_GIVEN))
        metrics["task_given_accuracy"] = fmean(given.values())
    if held_out:
        metrics["general_ability"] = general_ability(held_out["base"], held_out["assistant"])
    write_json(
        folder / "metrics.json",
        {
            **identity,
            "tasks": [version.manifest["task"] for version in versions],
            "matrix": last.matrix().to_json(),
            "metrics": {name: metrics.get(name) for name in MEASURES},
            "formulas": {name: measure.formula for name, measure in MEASURES.items()},
            "scores": scores_percent(last.predictions()),
            "held_out": held_out,
            "environment": last.manifest["environment"],
        },
    )


def routing_accuracy_of(store: Store) -> float | None:
    """Share of the held-out samples sent to the group that learned their task, in percent."""
    current = store.current
    groups = current.codebook().groups
    learned_by = {task.name: group.id for group in groups for task in group.tasks}
    return routing_accuracy(current.predictions(), learned_by)


def _cells(versions: Sequence[Version]) -> Iterator[tuple[int, Prediction]]:
    """Yield every prediction with the row of the accuracy matrix that it counts in."""
    for t, version in enumerate(versions, start=1):
        before = version.predictions_before()
        yield from ((0, prediction) for prediction in before.get("base", ()))
        if t > 1:  # before the first task, the assistant is the base model
            yield from ((t - 1, prediction) for prediction in before.get("current", ()))
        yield from ((t, prediction) for prediction in version.predictions())


def _measures(store: Store, versions: Sequence[Version]) -> dict[str, float | None]:
    last = versions[-1]
    steps = [step for version in versions for step in step_records(version.journal())]
    averaged = [step for step in steps if step.beta_mean is not None]
    return {
        "routing_accuracy": routing_accuracy_of(store),
        "groups": len(last.adapters),
        "steps_per_task": len(steps) / len(versions),
        "seconds": round(sum(version.manifest["seconds"] for version in versions), 1),
        **(_sizes(last) if store.config.build_method().trains else dict.fromkeys(SIZES, 0)),
        **averaging(
            [step.beta_mean for step in averaged if step.beta_mean is not None],
            [sum(step.fallbacks.values()) for step in averaged],
        ),
    }


def _sizes(version: Version) -> dict[str, float]:
    folders = {group: folder for group, (_, folder) in version.adapters.items()}
    newest = folders[version.manifest["group"]]
    files = [folder / name for folder in folders.values() for name in (REMEMBERED, VALIDATION)]
    stored = [file for folder in folders.values() for file in folder.glob("*.safetensors")]
    values = (
        count_numbers(newest / "adapter_model.safetensors"),
        sum(map(count_numbers, stored)),
        sum(len(read_jsonl(file)) for file in files if file.is_file()),
    )
    return dict(zip(SIZES, values, strict=True))


def count_numbers(path: Path) -> int:
    """Return how many numbers a safetensors file holds, from its header."""
    with safe_open(path, framework="np") as tensors:
        names = list(tensors.keys())
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
