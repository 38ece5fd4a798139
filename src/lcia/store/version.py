"""One immutable state of an assistant, and what a store's records may say."""

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lcia.data.sample import NAME, Task
from lcia.errors import StoreError
from lcia.evaluation.generate import Adapters, Prediction, read_predictions
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.files import RESTORE, check_sum, check_tree, checksums, read_json, read_record
from lcia.grouping import InstructionCodebook
from lcia.store.journal import read_journal
from lcia.store.samples import read_samples

SCHEMA = 2
"""1: no hashes but of adapters; the fingerprint was that of a dump of all settings."""

_INSIDE = re.compile(r"(?!/)(?!(.*/)?\.\.?(/|$))[^\\\0]+", re.DOTALL)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_record(record: Mapping[str, Any], path: Path) -> None:
    """Check what ``assistant.json`` says.

    Raises:
        StoreError: a later schema, or something is missing or of another type.
    """
    if record.get("schema") not in range(1, SCHEMA + 1):
        raise StoreError(
            f"{path}: schema is {record.get('schema')!r}; this lcia reads 1 to {SCHEMA}. Use the "
            "lcia version that wrote it."
        )
    _expect(path, record, {"model": dict, "settings": dict, "current": int})
    _expect(path, record["model"], {"name": str, "content_hash": str})
    _expect(path, {"groups_opened": 0, "earlier": {}, **record}, {"groups_opened": int})
    _check_files(path, record.get("earlier", {}))
    for key in ("pruned", "pinned"):
        numbers = record.get(key, [])
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise StoreError(f"{path}: {key} is {str(numbers)[:60]!r}; expected version numbers.")
    pruned = record.get("pruned", [])
    if record["current"] in pruned:
        raise StoreError(f"{path}: the current version is said to be pruned. {RESTORE}")


def check_manifest(manifest: Mapping[str, Any], *, root: Path, number: int) -> None:
    """Check what a version's manifest says: types, lineage, and paths that stay in the store.

    Raises:
        StoreError: it says something else.
    """
    path = root / "versions" / f"{number:04d}" / "manifest.json"
    if manifest.get("schema", 1) not in range(1, SCHEMA + 1):
        raise StoreError(
            f"{path}: schema is {manifest['schema']!r}; this lcia reads 1 to {SCHEMA}."
        )
    _expect(path, manifest, {"version": int, "groups": dict, "tasks": dict})
    parent = manifest.get("parent")
    if manifest["version"] != number or (number > 0) != (
        isinstance(parent, int) and 0 <= parent < number
    ):
        raise StoreError(
            f"{path}: says version {manifest['version']} with parent {parent}; expected version "
            f"{number} with an earlier one."
        )
    for group, entry in manifest["groups"].items():
        if not isinstance(entry, dict):
            raise StoreError(f"{path}: groups.{group}: expected an object.")
        _check_place(path, entry.get("adapter"), "groups", f"groups.{group}.adapter")
    for task, place in manifest["tasks"].items():
        _check_place(path, place, "tasks", f"tasks.{task}")
    _check_files(path, manifest.get("files", {}))


def check_proposal(proposal: Mapping[str, Any], path: Path) -> None:
    """Check that what a run proposes stays in the store.

    Raises:
        StoreError: it does not, or is no proposal.
    """
    _expect(path, proposal, {"adapters": dict, "task": str})
    _check_place(path, proposal["task"], "tasks", "task")
    for group, folder in proposal["adapters"].items():
        _check_place(path, f"groups/{group}/0001", "groups", f"adapters.{group}")
        if not isinstance(folder, str) or not _INSIDE.fullmatch(folder):
            raise StoreError(f"{path}: adapters.{group}: expected a folder of the run.")


def refuse_links(root: Path, paths: Iterable[Path]) -> None:
    """Check that nothing on the way to these files and folders, or in them, is a link.

    Raises:
        StoreError: there is one.
    """
    seen: set[str] = set()
    base = str(root)
    for path in paths:
        way = base
        for part in os.path.relpath(path, base).split(os.sep):
            way = os.path.join(way, part)
            if way not in seen and os.path.islink(way):
                raise StoreError(
                    f"{way}: is a link; a store has none. Put the files there in its place."
                )
            seen.add(way)
        if os.path.isdir(way):
            check_tree(way)


def check_adapter(folder: Path) -> None:
    """Check that an adapter's settings ask for no more than its file holds.

    Raises:
        StoreError: the file is damaged, or the settings claim a larger rank.
    """
    config, file = read_record(folder / "adapter_config.json"), folder / "adapter_model.safetensors"
    try:
        with safe_open(file, framework="np") as tensors:
            shapes = [
                tensors.get_slice(name).get_shape()
                for name in tensors.keys()  # noqa: SIM118 (safe_open is no mapping)
                if "lora_A" in name or "lora_embedding_A" in name
            ]
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{file}: expected an adapter that lcia wrote, found: {error}.") from error
    largest = max((shape[0] for shape in shapes if shape), default=0)
    pattern = config.get("rank_pattern") or {}
    claimed = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else [None])]
    for rank in claimed:
        if not isinstance(rank, int) or rank > largest:
            raise StoreError(
                f"{folder}/adapter_config.json: has rank {json.dumps(rank)}; the weights beside it "
                f"have at most {largest}. Put the file back from a copy."
            )


def files_of(
    root: Path, kept: Iterable[str], *, known: Mapping[str, str], new: Mapping[str, Path]
) -> dict[str, str]:
    """Return path below ``root`` to SHA-256 of all files of a version.

    Args:
        root: the store.
        kept: folders that stay as they are, below ``root``.
        known: hashes that are known of them.
        new: folders that will be in the store, to where their content is now.
    """
    by_folder: dict[str, dict[str, str]] = {}
    for path, value in known.items():
        by_folder.setdefault("/".join(path.split("/", 3)[:3]), {})[path] = value
    files: dict[str, str] = {}
    for place in dict.fromkeys(kept):
        if place in new:
            continue
        if place not in by_folder:
            found = checksums(root / place)
            by_folder[place] = {f"{place}/{name}": value for name, value in found.items()}
        files |= by_folder[place]
    for place, folder in new.items():
        files |= {f"{place}/{name}": value for name, value in checksums(folder).items()}
    for path in [path for path in files if path.startswith("versions/")]:
        if path.endswith("/manifest.json"):
            del files[path]
    return files


def _expect(path: Path, record: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for key, kind in kinds.items():
        value = record.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise StoreError(
                f"{path}: {key} is {str(value)[:60]!r}; expected {kind.__name__}, as lcia writes."
            )


def _check_place(path: Path, place: Any, kind: str, key: str) -> None:
    parts = place.split("/") if isinstance(place, str) else []
    if len(parts) != 3 or parts[0] != kind or not all(map(NAME.fullmatch, parts)):
        raise StoreError(
            f"{path}: {key} is {str(place)[:60]!r}; expected a folder of the store, such as "
            f"'{kind}/NAME/0001'."
        )


def _check_files(path: Path, files: Any) -> None:
    if not isinstance(files, dict):
        raise StoreError(f"{path}: files: expected an object of path to SHA-256.")
    for name, value in files.items():
        if not (_INSIDE.fullmatch(name) and isinstance(value, str) and _SHA256.fullmatch(value)):
            raise StoreError(
                f"{path}: files: {name[:60]!r}: {str(value)[:20]!r}; expected a path in the store "
                "and its SHA-256."
            )


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
