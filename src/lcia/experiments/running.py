"""A stream learned by several methods, seeds and orders, one resumable folder each."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from lcia.config import AssistantConfig, StreamConfig, parse_config, todays_names
from lcia.data import Task
from lcia.data.sample import NAME
from lcia.data.stream import resolve
from lcia.distributed.launch import joined, start
from lcia.distributed.processes import claimed, is_main, on_main
from lcia.errors import (
    ConfigError,
    DivergenceError,
    GateError,
    LciaError,
    OutOfMemoryError,
    TrainingError,
)
from lcia.experiments.results import (
    Result,
    answer_held_out,
    answer_task_given,
    read_result,
    write_result,
)
from lcia.files import write_text
from lcia.learner import ContinualLearner, Listener, Store, check_task, load_host
from lcia.learner.outcome import environment
from lcia.learner.preflight import preflight
from lcia.memory import forget, memory_watched
from lcia.models.host import AdapterHost
from lcia.models.loading import check_model, reads_images
from lcia.registry import METHODS

AS_LISTED = "as_listed"


@dataclass(frozen=True, kw_only=True)
class SubRun:
    """One assistant of an experiment.

    Attributes:
        label: name of method, rule and grouping in tables and folder names.
        seed: of initialisation, shuffling and dropout.
        order: name of the order of tasks.
        tasks: in that order.
        held_out: tasks that are only scored, before and after.
        config: of the assistant.
        folder: gets the store in ``assistant/`` and the results beside it.
    """

    label: str
    seed: int
    order: str
    tasks: tuple[Task, ...]
    held_out: tuple[Task, ...]
    config: AssistantConfig
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What came of an experiment.

    Attributes:
        results: one per finished sub-run.
        failures: folder name of each sub-run that failed, to what stopped it.
        elsewhere: folder names of those that another run of the experiment is working on.
    """

    results: tuple[Result, ...]
    failures: Mapping[str, LciaError]
    elsewhere: tuple[str, ...] = ()


def stream_tasks(config: StreamConfig, *, base: Path) -> tuple[Task, ...]:
    """Return the tasks of a stream, their files read and checked.

    Args:
        config: the stream.
        base: folder relative paths start from.

    Raises:
        ConfigError: no such stream, or an order that names other tasks.
        DataError: a file is missing or has records that cannot be used.
    """
    tasks = _checked(config.read_tasks(base=base))
    names = sorted(task.name for task in tasks)
    for order, listed in config.orders.items():
        if not NAME.fullmatch(order):
            raise ConfigError(f"orders: '{order}' cannot name a folder: use letters, digits, _, -.")
        if sorted(listed) != names:
            odd = sorted(set(listed) ^ set(names)) or ["a task twice"]
            raise ConfigError(
                f"orders.{order}: expected every task of the stream once; differs in "
                f"{', '.join(odd)}."
            )
    return tasks


def held_out_tasks(config: StreamConfig, tasks: Sequence[Task], *, base: Path) -> tuple[Task, ...]:
    """Return the tasks that are only scored, their files read and checked.

    Raises:
        ConfigError: one of them has the name of a task that is learned.
        DataError: a file is missing or has records that cannot be used.
    """
    held_out = _checked(config.held_out.read_tasks(base=base)) if config.held_out else ()
    if both := sorted({task.name for task in tasks} & {task.name for task in held_out}):
        raise ConfigError(f"held_out: {', '.join(both)} is learned, too. Leave it out of one.")
    return held_out


def sub_runs(config: StreamConfig, *, base: Path) -> Iterator[SubRun]:
    """Yield the assistants of an experiment: methods x rules x groupings x seeds x orders.

    A method that learns all tasks at once learns them in the first order only.

    Args:
        config: the stream.
        base: folder relative paths start from.

    Raises:
        LciaError: configuration or data cannot be used.
    """
    tasks = stream_tasks(config, base=base)
    held_out = held_out_tasks(config, tasks, base=base)
    by_name = {task.name: task for task in tasks}
    orders = config.orders or {AS_LISTED: tuple(by_name)}
    for label, settings in config.variants().items():
        joint = METHODS.get(settings.method["name"]).joint
        for seed in config.seeds:
            for order, names in islice(orders.items(), 1 if joint else None):
                suffix = "" if order == AS_LISTED else f"-{order}"
                yield SubRun(
                    label=label,
                    seed=seed,
                    order=order,
                    tasks=tuple(by_name[name] for name in names),
                    held_out=held_out,
                    config=settings.model_copy(update={"seed": seed}),
                    folder=output_folder(config, base=base) / f"{label}-seed{seed}{suffix}",
                )


def output_folder(config: StreamConfig, *, base: Path) -> Path:
    """Return the folder of an experiment's results.

    Raises:
        ConfigError: a variable in the path is not set.
    """
    return Path(os.path.normpath(resolve(config.output, base=base, where="output")))


def check_experiment(config: StreamConfig, *, base: Path) -> tuple[SubRun, ...]:
    """Check all that can be checked before weights are loaded: settings, data, images, model.

    Args:
        config: the stream.
        base: folder relative paths start from: that of the stream's file.

    Returns:
        The planned sub-runs, in the order in which they would be run.

    Raises:
        LciaError: configuration, data or model cannot be used, or the output folder holds
            results of other settings.
    """
    planned = tuple(sub_runs(config, base=base))
    for sub in planned:
        _check_same(sub)
    check_model(config.model)
    images = any(s.images for task in planned[0].tasks for s in (*task.train, *task.test))
    if images and not reads_images(config.model):
        raise ConfigError(
            f"model: '{config.model}' reads text only, and the tasks have images. Choose a "
            "vision-language model."
        )
    return planned


def run_experiment(
    config: StreamConfig,
    *,
    base: Path,
    listener: Listener | None = None,
    finished: Callable[[Result], None] = lambda result: None,
) -> Experiment:
    """Learn a stream with every method, seed and order; what is done is skipped.

    A sub-run whose training fails, or that runs out of memory, leaves the others alone: it is
    reported, and continues where it was when the experiment is run again. Runs of the same
    experiment side by side share the work: what one is working on, the others leave to it.

    Args:
        config: the stream.
        base: folder relative paths start from: that of the stream's file.
        listener: told every event.
        finished: called with every result that was not there before.

    Raises:
        LciaError: configuration, data or model cannot be used, or the output folder holds
            results of other settings.
    """
    start(config.training)
    planned = check_experiment(config, base=base)
    host = _prove(planned)
    results: list[Result] = []
    failures: dict[str, LciaError] = {}
    elsewhere: list[str] = []
    for sub in planned:
        on_main(partial(sub.folder.mkdir, parents=True, exist_ok=True))
        with claimed(sub.folder / ".lock") as ours:
            if not ours:
                elsewhere.append(sub.folder.name)
                continue
            if not (sub.folder / "metrics.json").is_file():
                try:
                    host = _learn(sub, planned, host=host, listener=listener)
                except (TrainingError, GateError) as error:
                    if joined() and not isinstance(error, (DivergenceError, GateError)):
                        raise  # the other processes may know nothing of it
                    host = None  # its adapter is in an unknown state
                    forget(error)
                    failures[sub.folder.name] = error
                    continue
                finished(read_result(sub.folder))
        results.append(read_result(sub.folder))
    return Experiment(results=tuple(results), failures=failures, elsewhere=tuple(elsewhere))


def _prove(planned: Sequence[SubRun]) -> AdapterHost | None:
    """Check that what is left to learn can be trained; return the model, if it was loaded.

    Raises:
        ConfigError: a sub-run's settings cannot train the model on one of its tasks.
    """
    left = [sub for sub in planned if not (sub.folder / "metrics.json").is_file()]
    if not left:
        return None
    with memory_watched():
        host = load_host(left[0].config)
    for sub in left:
        for task in sub.tasks:
            try:
                with memory_watched():
                    preflight(host, task, sub.config)
            except OutOfMemoryError:
                break  # it will be told when it is this one's turn
            except ConfigError as error:
                raise ConfigError(f"{sub.label}: {error}") from error
    return host


def _checked(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    for task in tasks:
        try:
            check_task(task)
        except LciaError as error:
            raise type(error)(f"task '{task.name}': {error}") from error
    return tasks


@memory_watched()
def _learn(
    sub: SubRun,
    planned: Sequence[SubRun],
    *,
    host: AdapterHost | None,
    listener: Listener | None,
) -> AdapterHost:
    """Learn what is left of a sub-run and write its result; return the model for the next."""
    start(sub.config.training)
    learner = _open(sub, host=host, listener=listener)
    _tell_started(listener, sub, planned)
    learner.run(sub.tasks)
    answer_task_given(learner, folder=sub.folder)
    if sub.held_out:
        answer_held_out(learner, sub.held_out, folder=sub.folder)
    identity = {
        "label": sub.label,
        "method": dict(sub.config.method),
        "seed": sub.seed,
        "order": sub.order,
    }
    on_main(partial(write_result, sub.folder, identity, learner.store))
    return learner.host


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
    options: dict[str, Any] = {"host": host, "listener": listener}
    if (root / "assistant.json").is_file():
        return ContinualLearner(Store.open(root), **options)
    sub.config.check()
    check_model(sub.config.model)
    on_main(partial(write_text, sub.folder / "resolved.yaml", _resolved(sub)))
    return ContinualLearner.create(root, sub.config, **options)


def _resolved(sub: SubRun) -> str:
    tree = {
        "label": sub.label,
        "seed": sub.seed,
        "order": sub.order,
        "settings": sub.config.resolved().model_dump(mode="json"),
        "tasks": {task.name: task.fingerprint() for task in sub.tasks},
        "held_out": {task.name: task.fingerprint() for task in sub.held_out},
        "environment": environment(),
    }
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _check_same(sub: SubRun) -> None:
    """Refuse to continue a folder that was begun with other settings or data."""
    path = sub.folder / "resolved.yaml"
    if not path.is_file():
        return
    found, wanted = yaml.safe_load(path.read_text()), yaml.safe_load(_resolved(sub))
    # A setting that came with a later lcia had its default.
    written = todays_names(found["settings"])
    begun = parse_config(AssistantConfig, written, where=f"{path}: settings")
    found |= {"settings": begun.model_dump(mode="json"), "held_out": found.get("held_out", {})}
    for key in ("settings", "tasks", "held_out"):
        for name in sorted({*found[key], *wanted[key]}):
            old, new = found[key].get(name), wanted[key].get(name)
            if old != new:
                raise ConfigError(
                    f"{sub.folder}: was begun with {key}.{name} = {json.dumps(old)}; now it is "
                    f"{json.dumps(new)}. Choose another output, or delete that folder."
                )
    if list(found["tasks"]) != list(wanted["tasks"]):
        raise ConfigError(f"{sub.folder}: was begun with another order of tasks.")
