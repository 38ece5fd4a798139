"""One immutable state of an assistant."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lcia.data.sample import Task
from lcia.errors import StoreError
from lcia.evaluation.generate import Adapters, Prediction, read_predictions
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.files import check_sum, read_json, read_record
from lcia.grouping import InstructionCodebook
from lcia.store.journal import read_journal
from lcia.store.manifest import check_adapter, refuse_links
from lcia.store.samples import read_samples

GATE = "gate.json"
"""The gate's report, in a version's folder and in that of a candidate."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One immutable state of an assistant.

    Attributes:
        number: 0 for the empty assistant.
        root: the assistant's directory.
        manifest: what ``manifest.json`` holds: parent, task, decision, groups, scores, packages,
            and the SHA-256 of every file of the version by its path below ``root``.
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

    @property
    def fingerprint_schema(self) -> int:
        """The schema of the run that made the version, which says how its task was hashed."""
        return int(self.manifest.get("fingerprint_schema", 1))

    def codebook(self) -> InstructionCodebook:
        """Return the instructions of every group.

        Raises:
            StoreError: the file is damaged.
        """
        return self._codebook.copy()

    @cached_property
    def _codebook(self) -> InstructionCodebook:
        path = self.path / "codebook.json"
        wanted = self.manifest.get("files", {}).get(path.relative_to(self.root).as_posix())
        if wanted is not None:
            check_sum(path, wanted)
        return InstructionCodebook.load(path)

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

    def gate(self) -> dict[str, Any] | None:
        """Return the gate's report; None where nothing was checked."""
        path = self.path / GATE
        return dict(read_json(path)) if path.is_file() else None

    def journal(self) -> list[dict[str, Any]]:
        """Return the events of the run that made this version."""
        return list(read_journal(self.path / "journal.jsonl"))

    def tasks(self, names: Collection[str] | None = None) -> list[Task]:
        """Return the learned tasks in order, or those of these names, with held-out samples.

        Their ``train`` holds the held-out samples too: the training data are not kept.
        """
        return [
            _read_task(name, self.root / path)
            for name, path in self.manifest["tasks"].items()
            if names is None or name in names
        ]

    def check(self) -> None:
        """Check what is cheap: codebook, no links, adapters no larger than their files.

        Raises:
            StoreError: something is damaged, or was not written by lcia.
        """
        refuse_links(self.root, [self.path, *(folder for _, folder in self.adapters.values())])
        refuse_links(self.root, [self.root / path for path in self.manifest["tasks"].values()])
        for _, folder in self.adapters.values():
            check_adapter(folder)
        _ = self._codebook


def version_path(root: Path, number: int) -> Path:
    """Return the folder of a version."""
    return root / "versions" / f"{number:04d}"


def _read_task(name: str, folder: Path) -> Task:
    samples = read_samples(folder / "samples.jsonl")
    about = read_record(folder / "task.json")
    try:
        return Task(name=name, train=samples, test=samples, **about)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{folder}: expected a task that lcia wrote: {error}.") from error
