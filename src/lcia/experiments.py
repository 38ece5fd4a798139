"""A stream learned by several methods, seeds and orders, one resumable folder each."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from lcia.config import AssistantConfig, StreamConfig
from lcia.data import Task
from lcia.data.paths import resolve
from lcia.errors import ConfigError, LciaError
from lcia.evaluation.generate import scores_percent
from lcia.evaluation.metrics import METRICS
from lcia.learner import ContinualLearner, Listener, Store, check_task
from lcia.learner.environment import environment
from lcia.learner.files import read_json, write_json, write_jsonl, write_text
from lcia.learner.processes import is_main, on_main
from lcia.models.host import AdapterHost
from lcia.models.loading import check_model

AS_LISTED = "as_listed"


@dataclass(frozen=True, kw_only=True)
class SubRun:
    """One assistant of an experiment.

    Attributes:
        label: name of method, rule and grouping in tables and folder names.
        seed: of initialisation, shuffling and dropout.
        order: name of the order of tasks.
        tasks: in that order.
        config: of the assistant.
        folder: gets the store in ``assistant/`` and the results beside it.
    """

    label: str
    seed: int
    order: str
    tasks: tuple[Task, ...]
    config: AssistantConfig
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one assistant of an experiment reached: the content of ``metrics.json``.

    Attributes:
        label: the method's name in tables.
        seed: its seed.
        order: name of the order of tasks.
        folder: of the sub-run.
        metrics: every metric; None where it is unavailable.
        groups: number of adapter groups.
        seconds: time it took.
    """

    label: str
    seed: int
    order: str
    folder: Path
    metrics: Mapping[str, float | None]
    groups: int
    seconds: float

    @property
    def store(self) -> Store:
        """The assistant."""
        return Store.open(self.folder / "assistant")


def stream_tasks(config: StreamConfig, *, base: Path) -> tuple[Task, ...]:
    """Return the tasks of a stream, their files read and checked.

    Args:
        config: the stream.
        base: folder relative paths start from.

    Raises:
        ConfigError: no such stream, or an order that names other tasks.
        DataError: a file is missing or has records that cannot be used.
    """
    tasks = config.read_tasks(base=base)
    for task in tasks:
        try:
            check_task(task)
        except LciaError as error:
            raise type(error)(f"task '{task.name}': {error}") from error
    names = sorted(task.name for task in tasks)
    for order, listed in config.orders.items():
        if sorted(listed) != names:
            odd = sorted(set(listed) ^ set(names)) or ["a task twice"]
            raise ConfigError(
                f"orders.{order}: expected every task of the stream once; differs in "
                f"{', '.join(odd)}."
            )
    return tasks


def sub_runs(config: StreamConfig, tasks: Sequence[Task], *, base: Path) -> Iterator[SubRun]:
    """Yield the assistants of an experiment: methods x rules x groupings x seeds x orders.

    Raises:
        ConfigError: two with the same label.
    """
    by_name = {task.name: task for task in tasks}
    orders = config.orders or {AS_LISTED: tuple(by_name)}
    for label, settings in config.variants().items():
        for seed in config.seeds:
            for order, names in orders.items():
                suffix = "" if order == AS_LISTED else f"-{order}"
                yield SubRun(
                    label=label,
                    seed=seed,
                    order=order,
                    tasks=tuple(by_name[name] for name in names),
                    config=settings.model_copy(update={"seed": seed}),
                    folder=output_folder(config, base=base) / f"{label}-seed{seed}{suffix}",
                )


def output_folder(config: StreamConfig, *, base: Path) -> Path:
    """Return the folder of an experiment's results.

    Raises:
        ConfigError: a variable in the path is not set.
    """
    return Path(os.path.normpath(resolve(config.output, base=base, where="output")))


def run_experiment(
    config: StreamConfig,
    *,
    base: Path,
    listener: Listener | None = None,
    finished: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Learn a stream with every method, seed and order; what is done is skipped.

    Args:
        config: the stream.
        base: folder relative paths start from: that of the stream's file.
        listener: told every event.
        finished: called with every result that was not there before.

    Returns:
        One result per sub-run.

    Raises:
        LciaError: configuration, data or model cannot be used, or the output folder holds
            results of other settings.
    """
    tasks = stream_tasks(config, base=base)
    planned = list(sub_runs(config, tasks, base=base))
    for sub in planned:
        _check_same(sub)
    host: AdapterHost | None = None
    results = []
    for sub in planned:
        done = sub.folder / "metrics.json"
        if not done.is_file():
            learner = _open(sub, host=host, listener=listener)
            _tell_started(listener, sub, planned)
            learner.run(sub.tasks)
            host = learner.host
            on_main(partial(_write_results, sub, learner.store))
            finished(read_result(sub.folder))
        results.append(read_result(sub.folder))
    return results


def read_result(folder: Path) -> Result:
    """Return the result of a finished sub-run.

    Raises:
        StoreError: the folder holds no result.
    """
    found = read_json(folder / "metrics.json")
    names = ("label", "seed", "order", "metrics", "groups", "seconds")
    return Result(folder=folder, **{name: found[name] for name in names})


def _tell_started(listener: Listener | None, sub: SubRun, planned: Sequence[SubRun]) -> None:
    if listener is not None and is_main():
        left = [other for other in planned if not (other.folder / "metrics.json").is_file()]
        listener(
            {
                "event": "started",
                "run": sub.folder.name,
                "tasks": [task.name for task in sub.tasks],
                "tasks_left": sum(len(other.tasks) for other in left),
            }
        )


def _open(sub: SubRun, *, host: AdapterHost | None, listener: Listener | None) -> ContinualLearner:
    root = sub.folder / "assistant"
    options = {"host": host, "listener": listener}
    if (root / "assistant.json").is_file():
        return ContinualLearner(Store.open(root), **options)
    sub.config.check()
    check_model(sub.config.model)
    on_main(partial(_begin, sub))
    return ContinualLearner.create(root, sub.config, **options)


def _begin(sub: SubRun) -> None:
    sub.folder.mkdir(parents=True, exist_ok=True)
    write_text(sub.folder / "resolved.yaml", _resolved(sub))


def _resolved(sub: SubRun) -> str:
    tree = {
        "label": sub.label,
        "seed": sub.seed,
        "order": sub.order,
        "settings": sub.config.model_dump(mode="json"),
        "tasks": {task.name: task.fingerprint() for task in sub.tasks},
        "environment": environment(),
    }
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _check_same(sub: SubRun) -> None:
    """Refuse to continue a folder that was begun with other settings or data."""
    path = sub.folder / "resolved.yaml"
    if not path.is_file():
        return
    found, wanted = yaml.safe_load(path.read_text()), yaml.safe_load(_resolved(sub))
    for key in ("settings", "tasks"):
        for name in sorted({*found[key], *wanted[key]}):
            old, new = found[key].get(name), wanted[key].get(name)
            if old != new:
                raise ConfigError(
                    f"{sub.folder}: was begun with {key}.{name} = {json.dumps(old)}; now it is "
                    f"{json.dumps(new)}. Choose another output, or delete that folder."
                )
    if list(found["tasks"]) != list(wanted["tasks"]):
        raise ConfigError(f"{sub.folder}: was begun with another order of tasks.")


def _write_results(sub: SubRun, store: Store) -> None:
    versions = store.history()
    journals = [[version.number, version.journal()] for version in versions]
    write_jsonl(
        sub.folder / "journal.jsonl",
        ({"version": number, **event} for number, events in journals for event in events),
    )
    write_jsonl(
        sub.folder / "predictions.jsonl",
        (
            {"after": version.manifest["task"], **prediction.to_json()}
            for version in versions
            for prediction in version.predictions()
        ),
    )
    last = versions[-1]
    write_json(
        sub.folder / "metrics.json",
        {
            "label": sub.label,
            "method": dict(sub.config.method),
            "seed": sub.seed,
            "order": sub.order,
            "tasks": [task.name for task in sub.tasks],
            "matrix": last.matrix().to_json(),
            "metrics": last.manifest["metrics"],
            "formulas": {name: metric.formula for name, metric in METRICS.items()},
            "scores": scores_percent(last.predictions()),
            "groups": len(last.manifest["groups"]),
            "seconds": round(sum(version.manifest["seconds"] for version in versions), 1),
            "environment": last.manifest["environment"],
        },
    )
