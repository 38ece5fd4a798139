"""The directory an assistant lives in: immutable versions, one pointer to the current one."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lcia.config import AssistantConfig, parse_config
from lcia.data.task import Task
from lcia.errors import StoreError
from lcia.evaluation.generate import Adapters, Prediction, read_predictions
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.evaluation.metrics import summarise
from lcia.files import (
    checksums,
    publish,
    read_json,
    write_json,
    write_jsonl,
)
from lcia.grouping import InstructionCodebook
from lcia.learner.finite import check_finite
from lcia.learner.journal import read_journal
from lcia.learner.samples import read_samples, write_samples

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Version:
    """One immutable state of an assistant.

    Attributes:
        number: 0 for the empty assistant.
        root: the assistant's directory.
        manifest: what ``manifest.json`` holds: parent, task, decision, groups, scores, packages.
    """

    number: int
    root: Path
    manifest: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The version's folder."""
        return version_path(self.root, self.number)

    @property
    def adapters(self) -> Adapters:
        """Group to the key ``group@version`` and the folder of its adapter."""
        return {
            group: (f"{group}@{Path(entry['adapter']).name}", self.root / entry["adapter"])
            for group, entry in self.manifest["groups"].items()
        }

    def codebook(self) -> InstructionCodebook:
        """Return the instructions of every group."""
        return InstructionCodebook.load(self.path / "codebook.json")

    def matrix(self) -> AccuracyMatrix:
        """Return the scores up to this version."""
        return AccuracyMatrix.load(self.path / "matrix.json")

    def predictions(self) -> list[Prediction]:
        """Return the predictions on all held-out samples; none for version 0."""
        return read_predictions(self.path / "predictions.jsonl") if self.number else []

    def predictions_before(self) -> dict[str, list[Prediction]]:
        """Return the predictions on the task before it was learned, ``base`` and ``current``."""
        files = {name: self.path / f"{name}.jsonl" for name in ("base", "current")}
        return {name: read_predictions(path) for name, path in files.items() if path.is_file()}

    def journal(self) -> list[dict[str, Any]]:
        """Return the events of the run that made this version."""
        return list(read_journal(self.path / "journal.jsonl"))

    def tasks(self) -> list[Task]:
        """Return the learned tasks in order, with their held-out samples.

        Their ``train`` holds the held-out samples too: the training data are not kept.
        """
        return [_read_task(name, self.root / path) for name, path in self.manifest["tasks"].items()]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A task being learned: a folder with whatever is done so far.

    Attributes:
        folder: deleted when the version it leads to is committed.
        number: of that version.
        parent: the version it builds on.
        task: name of the task.
        fingerprint: of the task's content and the assistant's settings.
    """

    folder: Path
    number: int
    parent: int
    task: str
    fingerprint: str


class Store:
    """An assistant's directory.

    Use ``Store.create`` or ``Store.open``.
    """

    def __init__(self, root: Path, record: Mapping[str, Any]) -> None:
        self.root = root
        self._record = dict(record)

    @classmethod
    def create(cls, root: str | Path, config: AssistantConfig, *, content_hash: str) -> "Store":
        """Make an empty assistant; it appears by one rename.

        Raises:
            StoreError: ``root`` exists and is not an empty folder.
        """
        root = Path(root)
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise StoreError(
                f"{root}: already exists and is not empty; expected a new folder for the assistant."
            )
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
            draft = Path(scratch) / "assistant"
            empty = version_path(draft, 0)
            empty.mkdir(parents=True)
            manifest: dict[str, Any] = {
                "version": 0,
                "parent": None,
                "task": None,
                "groups": {},
                "tasks": {},
            }
            write_json(empty / "manifest.json", manifest)
            InstructionCodebook(config.resolve_grouping()).save(empty / "codebook.json")
            AccuracyMatrix.start().save(empty / "matrix.json")
            record = {
                "schema": SCHEMA,
                "model": {"name": config.model, "content_hash": content_hash},
                "settings": config.model_dump(mode="json"),
                "current": 0,
            }
            write_json(draft / "assistant.json", record)
            os.replace(draft, root)
        return cls.open(root)

    @classmethod
    def open(cls, root: str | Path) -> "Store":
        """Open an existing assistant.

        Raises:
            StoreError: no assistant there, or one of another schema.
        """
        root = Path(root)
        if not (root / "assistant.json").is_file():
            raise StoreError(
                f"{root}: is not an assistant (no assistant.json). Make one with 'lcia learn "
                f"{root} DATA --name NAME --model MODEL' or 'lcia run STREAM.yaml'."
            )
        record = read_json(root / "assistant.json")
        if record.get("schema") != SCHEMA:
            raise StoreError(
                f"{root}/assistant.json: schema is {record.get('schema')!r}; this lcia reads "
                f"{SCHEMA}. Use the lcia version that wrote it."
            )
        return cls(root, record)

    @property
    def config(self) -> AssistantConfig:
        """The settings the assistant was made with."""
        where = str(self.root / "assistant.json")
        config: AssistantConfig = parse_config(
            AssistantConfig, self._record["settings"], where=where
        )
        return config

    @property
    def content_hash(self) -> str:
        """Hash of the base model's files when the assistant was made."""
        return str(self._record["model"]["content_hash"])

    @property
    def current(self) -> Version:
        """The version that answers and that the next task builds on."""
        return self.version(int(read_json(self.root / "assistant.json")["current"]))

    def version(self, number: int) -> Version:
        """Return a version by number.

        Raises:
            StoreError: no such version.
        """
        path = version_path(self.root, number)
        if not path.is_dir():
            known = ", ".join(str(v) for v in self.versions())
            raise StoreError(f"{self.root}: has no version {number}. Versions: {known}.")
        return Version(number=number, root=self.root, manifest=read_json(path / "manifest.json"))

    def versions(self) -> list[int]:
        """Return the numbers of all versions."""
        folders = (self.root / "versions").iterdir()
        return sorted(int(folder.name) for folder in folders if folder.name.isdigit())

    def history(self) -> list[Version]:
        """Return the versions that led to the current one, the first task's first."""
        chain = []
        version = self.current
        while version.number:
            chain.append(version)
            version = self.version(version.manifest["parent"])
        return chain[::-1]

    def roll_back(self, number: int) -> Version:
        """Make an earlier version current; nothing is deleted.

        Raises:
            StoreError: no such version, or another process is learning.
        """
        with self.writing():
            version = self.version(number)
            self._point_to(number)
        return version

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to change the assistant; it ends with the process, however that ends.

        Raises:
            StoreError: another process holds it.
        """
        lock = FileLock(self.root / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"{self.root}: another process is changing this assistant. Wait for it to end."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def verify(self) -> list[str]:
        """Compare every adapter file with the checksum in its manifest; return what differs."""
        problems = []
        for number in self.versions():
            for group, entry in self.version(number).manifest["groups"].items():
                folder = self.root / entry["adapter"]
                found = checksums(folder) if folder.is_dir() else {}
                problems += [
                    f"version {number}, group {group}: {folder / name} differs from its checksum"
                    for name, checksum in entry["sha256"].items()
                    if found.get(name) != checksum
                ]
        return problems

    def begin(self, task: str, fingerprint: str) -> Run:
        """Return the run that learns a task on the current version: the interrupted one, or new.

        Raises:
            StoreError: another task is unfinished.
        """
        current = self.current.number
        runs = self.root / "runs"
        for path in sorted(runs.glob("*/plan.json")):
            found = Run(folder=path.parent, **read_json(path))
            if found.number in self.versions() and found.number <= current:
                shutil.rmtree(found.folder)  # committed, but killed before it was cleared away
                continue
            if (found.fingerprint, found.parent) == (fingerprint, current):
                return found
            raise StoreError(
                f"{found.folder}: the task '{found.task}' is unfinished. Run the command that "
                "began it again, or delete this folder to give it up."
            )
        number = max(self.versions()) + 1
        plan: dict[str, Any] = {
            "number": number,
            "parent": current,
            "task": task,
            "fingerprint": fingerprint,
        }
        folder = runs / f"{number:04d}-{task}"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "plan.json", plan)
        return Run(folder=folder, **plan)

    def commit(
        self,
        run: Run,
        task: Task,
        *,
        group: str,
        adapters: Mapping[str, Path],
        contents: Mapping[str, Any],
    ) -> Version:
        """Publish a finished run as a version, make it current and delete the run.

        Every step can be repeated: a process killed in here commits when it is run again.

        Args:
            run: its folder holds the version's other files in ``version/``.
            task: the task just learned.
            group: the group that learned it.
            adapters: group to folder of adapters that are new, ``group``'s among them.
            contents: what the manifest says beyond lineage, groups and tasks.
        """
        parent = self.version(run.parent).manifest
        draft, target = run.folder / "version", version_path(self.root, run.number)
        if not target.exists():
            task_path = Path("tasks") / task.name / task.fingerprint()[:12]
            entries = self._publish_adapters(adapters, run.number)
            _write_task(task, self.root / task_path)
            manifest = {
                "version": run.number,
                "parent": run.parent,
                "task": task.name,
                "fingerprint": run.fingerprint,
                "group": group,
                "groups": {**parent["groups"], **entries},
                "tasks": {**parent["tasks"], task.name: str(task_path)},
                **contents,
            }
            write_json(draft / "manifest.json", manifest)
            publish(draft, target)
        self._point_to(run.number)
        shutil.rmtree(run.folder)
        return self.version(run.number)

    def revise(
        self,
        codebook: InstructionCodebook,
        *,
        groups: Mapping[str, Any],
        adapters: Mapping[str, Path],
        scored: tuple[AccuracyMatrix, Sequence[Prediction]],
        note: str,
    ) -> Version:
        """Publish a version in which groups changed but no task was learned, and make it current.

        Args:
            codebook: the changed groups.
            groups: group to manifest entry of adapters that stay as they are.
            adapters: group to folder of adapters that are new.
            scored: the matrix with its last row measured again, and the predictions behind it.
            note: what was done, for the history.
        """
        parent, number = self.current, max(self.versions()) + 1
        matrix, predictions = scored
        entries = {**groups, **self._publish_adapters(adapters, number)}
        manifest = {
            **parent.manifest,
            "version": number,
            "parent": parent.number,
            "task": None,
            "note": note,
            "group": None,
            "groups": entries,
            "metrics": summarise(matrix),
            "seconds": 0.0,
        }
        with tempfile.TemporaryDirectory() as scratch:
            draft = Path(scratch)
            codebook.save(draft / "codebook.json")
            matrix.save(draft / "matrix.json")
            write_jsonl(draft / "predictions.jsonl", (p.to_json() for p in predictions))
            write_jsonl(draft / "journal.jsonl", [{"event": "revised", "note": note}])
            write_json(draft / "manifest.json", manifest)
            publish(draft, version_path(self.root, number))
        self._point_to(number)
        return self.version(number)

    def _publish_adapters(self, adapters: Mapping[str, Path], number: int) -> dict[str, Any]:
        """Copy adapters to where version ``number`` has them; return their manifest entries."""
        for folder in adapters.values():
            check_finite(folder)
        entries = {}
        for group, folder in adapters.items():
            path = Path("groups") / group / f"{number:04d}"
            publish(folder, self.root / path)
            entries[group] = {"adapter": str(path), "sha256": checksums(folder)}
        return entries

    def _point_to(self, number: int) -> None:
        self._record["current"] = number
        write_json(self.root / "assistant.json", self._record)


def version_path(root: Path, number: int) -> Path:
    """Return the folder of a version."""
    return root / "versions" / f"{number:04d}"


def _write_task(task: Task, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch)
        about = {
            "scorer": task.scorer,
            "instruction": task.instruction,
            "max_new_tokens": task.max_new_tokens,
        }
        write_json(draft / "task.json", about)
        write_samples(draft / "samples.jsonl", task.test)
        publish(draft, folder)


def _read_task(name: str, folder: Path) -> Task:
    samples = read_samples(folder / "samples.jsonl")
    return Task(name=name, train=samples, test=samples, **read_json(folder / "task.json"))
