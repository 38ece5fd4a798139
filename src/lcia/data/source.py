"""Where a list of tasks comes from: named, built in, or a Super-NaturalInstructions checkout."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lcia.data.sample import Task
from lcia.data.stream import TaskConfig, load_stream, load_tasks, resolve
from lcia.errors import ConfigError, DataError
from lcia.registry import nearest


class SuperNIConfig(BaseModel):
    """Tasks of a Super-NaturalInstructions checkout.

    The defaults are CITB's protocol: 500 samples to train and 100 to test where there are that
    many, exact match for classification and ROUGE-L for the rest.

    Attributes:
        root: the checkout, with ``tasks/*.json``; or a folder that holds task files itself.
        tasks: names of task files without ``.json``, or their beginning up to the first ``_``
            (``task565``), in this order; empty: all, by name.
        split: a list of tasks below ``splits``, such as ``default/train_tasks``.
        categories: keep the tasks of one of these.
        max_tasks: keep so many, drawn by ``seed``.
        seed: draws tasks.
        max_train: train samples of a task, at most.
        max_test: test samples of a task, at most.
        max_new_tokens: the longest answer to generate.

    Source: Wang et al. 2022, arXiv:2204.07705; CITB: Zhang et al. 2023, arXiv:2310.14510.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Path
    tasks: tuple[str, ...] = ()
    split: str | None = None
    categories: tuple[str, ...] = ()
    max_tasks: int | None = Field(default=None, ge=1)
    seed: int = 0
    max_train: int | None = Field(default=None, ge=1)
    max_test: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=128, ge=1)

    def entries(self, *, base: str | Path = ".") -> tuple[TaskConfig, ...]:
        """Return the entries of the chosen tasks, as ``tasks`` of a stream file would hold them.

        Args:
            base: folder a relative ``root`` starts from.

        Raises:
            ConfigError: a task, category or split that is not there, or nothing is left.
            DataError: the folder holds no task files, or one cannot be read.
        """
        root = resolve(self.root, base=base, where="superni.root")
        files = _task_files(root)
        chosen = [_named(name, files) for name in self.tasks or files]
        if self.split is not None:
            listed = _split(root / "splits", self.split)
            chosen = [name for name in chosen if name in listed]
        if self.categories:
            chosen = _of_categories(chosen, files, self.categories)
        if not chosen:
            raise ConfigError(f"superni: no task of {root} is left. Choose a wider filter.")
        if self.max_tasks is not None and self.max_tasks < len(chosen):
            drawn = sorted(random.Random(self.seed).sample(range(len(chosen)), self.max_tasks))
            chosen = [chosen[i] for i in drawn]
        return tuple(
            TaskConfig(
                name=name,
                superni=files[name].absolute(),
                max_train=self.max_train,
                max_test=self.max_test,
                max_new_tokens=self.max_new_tokens,
            )
            for name in chosen
        )


def _task_files(root: Path) -> dict[str, Path]:
    folder = root / "tasks" if (root / "tasks").is_dir() else root
    files = {path.stem: path for path in sorted(folder.glob("task*.json"), key=_number)}
    if not files:
        raise DataError(
            f"{folder}: holds no task*.json. Expected a checkout of Super-NaturalInstructions with "
            "tasks/task*.json, or a folder of its task files."
        )
    return files


def _number(path: Path) -> tuple[int, str]:
    """Order task2 before task10."""
    digits = path.stem.partition("_")[0].removeprefix("task")
    return (int(digits) if digits.isdecimal() else 0), path.stem


def _named(name: str, files: Iterable[str]) -> str:
    stem = name.removesuffix(".json")
    if stem in files:
        return stem
    numbered = [file for file in files if file.partition("_")[0] == stem]
    if len(numbered) == 1:
        return numbered[0]
    hint = nearest(stem, files).partition("Choices")[0].strip()
    raise ConfigError(f"superni.tasks: '{name}' is not one of the task files. {hint}".strip())


def _split(folder: Path, name: str) -> set[str]:
    path = folder / f"{name.removesuffix('.txt')}.txt"
    try:
        return set(path.read_text(encoding="utf-8").split())
    except OSError as error:
        known = sorted(
            str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.txt")
        )
        raise ConfigError(f"superni.split: {path} is not there. {nearest(name, known)}") from error


def _of_categories(
    names: Iterable[str], files: dict[str, Path], categories: Iterable[str]
) -> list[str]:
    found = {name: _categories(files[name]) for name in names}
    known = {category for of_task in found.values() for category in of_task}
    for category in categories:
        if category not in known:
            hint = nearest(category, sorted(known))
            raise ConfigError(f"superni.categories: no task is of '{category}'. {hint}")
    return [name for name, of_task in found.items() if not of_task.isdisjoint(categories)]


def _categories(path: Path) -> set[str]:
    try:
        return set(json.loads(path.read_bytes()).get("Categories", ()))
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: is not a Super-NaturalInstructions task: {error}") from error


class TaskSource(BaseModel):
    """Tasks: listed, of a built-in stream, or of a checkout; exactly one of the three.

    Attributes:
        tasks: the tasks, in order; or
        stream: the name of a stream that ships with lcia, ``builtin:skills``; or
        superni: tasks of a Super-NaturalInstructions checkout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[TaskConfig, ...] = ()
    stream: str | None = None
    superni: SuperNIConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "TaskSource":
        given = [bool(self.tasks), self.stream is not None, self.superni is not None]
        if sum(given) != 1:
            raise ValueError("expected exactly one of tasks, stream and superni.")
        return self

    def read_tasks(self, *, base: str | Path = ".") -> tuple[Task, ...]:
        """Return the tasks, their files read and checked.

        Args:
            base: the folder relative paths start from: that of the stream's file.

        Raises:
            ConfigError: no such stream or task, two tasks of one name, a variable is not set.
            DataError: a file cannot be read or used, or is too small to hold samples out of it.
            MissingDependencyError: a package that carries a stream's data is not installed.
        """
        if self.stream is not None:
            return load_stream(self.stream)
        entries = self.tasks if self.superni is None else self.superni.entries(base=base)
        return load_tasks(entries, base=base)
