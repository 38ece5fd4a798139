"""The directory an assistant lives in: immutable versions, one pointer to the current one."""

import glob
import os
import re
import secrets
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lcia.config import BEFORE, AssistantConfig, parse_config, todays_names
from lcia.errors import StoreError
from lcia.evaluation.generate import Prediction
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.evaluation.metrics import summarise
from lcia.files import (
    cannot_write,
    check_sum,
    discard,
    make_folders,
    place_copy,
    read_sealed,
    settle,
    sha256_of,
    sweep,
    write_jsonl,
    write_sealed,
)
from lcia.grouping import InstructionCodebook
from lcia.store import audit
from lcia.store.version import (
    SCHEMA,
    Version,
    check_manifest,
    check_record,
    files_of,
    refuse_links,
    version_path,
)

GROUP = re.compile(r"g([1-9]\d{0,8})")


class Store:
    """An assistant's directory.

    Use ``Store.create`` or ``Store.open``.
    """

    def __init__(self, root: Path, record: Mapping[str, Any]) -> None:
        self.root = root
        self._record = dict(record)
        # The version read last: a manifest names every file, and is asked for again and again.
        self._last: tuple[tuple[int, ...], Version] | None = None

    @classmethod
    def create(cls, root: str | Path, config: AssistantConfig, *, content_hash: str) -> "Store":
        """Make an empty assistant; it appears by one rename.

        An assistant that holds nothing, as a process killed after this leaves it, is replaced.

        Raises:
            StoreError: ``root`` holds something.
        """
        root = Path(root)
        if (root / "assistant.json").exists():
            _remove_empty(cls.open(root))
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise StoreError(
                f"{root}: already exists and is not empty; expected a new folder for the assistant."
            )
        place = Path(os.path.abspath(root))
        make_folders(place.parent)
        _sweep_drafts(place)
        draft = place.with_name(f".{place.name}.new-{secrets.token_hex(4)}")
        try:
            draft.mkdir()
            with _locked(draft):
                _write_empty(draft, config, content_hash=content_hash)
                settle(draft, place)
        except OSError as error:
            with suppress(OSError):
                discard(draft)
            raise error if isinstance(error, StoreError) else cannot_write(root, error) from error
        return cls.open(root)

    @classmethod
    def open(cls, root: str | Path) -> "Store":
        """Open an existing assistant, after checking what is cheap.

        Raises:
            StoreError: no assistant there, one of a later schema, or damaged.
        """
        store = cls.open_unchecked(root)
        store.current.check()
        return store

    @classmethod
    def open_unchecked(cls, root: str | Path) -> "Store":
        """Open an existing assistant whose version in force may be damaged.

        Raises:
            StoreError: no assistant there, one of a later schema, or its record is damaged.
        """
        root = Path(root)
        if not (root / "assistant.json").exists():
            raise StoreError(
                f"{root}: is not an assistant (no assistant.json). Make one with 'lcia learn "
                f"{root} DATA --name NAME --model MODEL' or 'lcia run STREAM.yaml'."
            )
        return cls(root, read_store_record(root))

    @property
    def config(self) -> AssistantConfig:
        """The settings the assistant was made with."""
        where = str(self.root / "assistant.json")
        config: AssistantConfig = parse_config(
            AssistantConfig, todays_names(self._record["settings"]), where=where
        )
        before = BEFORE.get(str(config.method["name"]), {})
        return config.model_copy(update={"method": {**before, **config.method}})

    def differing(self, config: AssistantConfig) -> dict[str, tuple[Any, Any]]:
        """Return the settings, by path, in which the assistant's and others differ: both values."""
        own, other = (_flat(c.model_dump(mode="json")) for c in (self.config, config))
        names = dict.fromkeys([*own, *other])
        return {n: (own.get(n), other.get(n)) for n in names if own.get(n) != other.get(n)}

    @property
    def content_hash(self) -> str:
        """Hash of the base model's files when the assistant was made."""
        return str(self._record["model"]["content_hash"])

    @property
    def current(self) -> Version:
        """The version that answers and that the next task builds on."""
        return self.version(self.current_number)

    @property
    def current_number(self) -> int:
        """The number of the version that answers."""
        return int(read_store_record(self.root)["current"])

    @property
    def earlier(self) -> Mapping[str, str]:
        """Path to SHA-256 of the files of versions whose manifests hold none (schema 1)."""
        return self._record.get("earlier", {})

    @property
    def pruned(self) -> frozenset[int]:
        """Versions that nobody can go back to: of some, what they tell is still there."""
        return frozenset(read_store_record(self.root).get("pruned", ()))

    def version(self, number: int) -> Version:
        """Return a version by number.

        Raises:
            StoreError: no such version, it was pruned, or its manifest is damaged.
        """
        if number in self.pruned:
            raise StoreError(f"{self.root}: version {number} was pruned. {self._known()}")
        return self.past(number)

    def past(self, number: int) -> Version:
        """Return a version to be told of; one that was pruned has no adapters and no tasks.

        Raises:
            StoreError: no such version, or its manifest is damaged.
        """
        path = version_path(self.root, number)
        if not path.is_dir():
            raise StoreError(f"{self.root}: has no version {number}. {self._known()}")
        refuse_links(self.root, [path / "manifest.json"])
        earlier = self._record.get("earlier", {})
        if wanted := earlier.get(f"versions/{path.name}/manifest.json"):
            check_sum(path / "manifest.json", wanted)
        status = os.stat(path / "manifest.json")
        key = (number, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._last is None or self._last[0] != key:
            manifest = read_sealed(path / "manifest.json")
            check_manifest(manifest, root=self.root, number=number)
            self._last = key, Version(number=number, root=self.root, manifest=manifest)
        return self._last[1]

    def versions(self) -> list[int]:
        """Return the numbers of the versions that can be gone back to."""
        return sorted(set(self.numbers()) - self.pruned)

    def numbers(self) -> list[int]:
        """Return the numbers of all versions, those that were pruned among them."""
        folders = (self.root / "versions").iterdir()
        return sorted(int(f.name) for f in folders if f.name.isascii() and f.name.isdigit())

    def history(self) -> list[Version]:
        """Return the versions that led to the current one, the first task's first; see ``past``."""
        return list(self.lineage())[::-1]

    def lineage(self) -> Iterator[Version]:
        """Yield the current version and those that led to it, the last first, read one by one."""
        version = self.current
        while version.number:
            yield version
            version = self.past(version.manifest["parent"])

    def roll_back(self, number: int) -> Version:
        """Make an earlier version current; nothing is deleted.

        Raises:
            StoreError: no such version, or another process is learning.
        """
        with self.writing():
            version = self.version(number)
            version.check()
            for committed in (self.root / "runs").glob(f"{self.current.number:04d}-*"):
                discard(committed)  # killed before it was cleared away
            if number != self.current_number:
                audit.record(self.root, "rolled back", version=number, left=self.current_number)
            self.point_to(version)
        return version

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the right to change the assistant; it ends with the process, however that ends.

        What killed processes left half written is swept away first.

        Raises:
            StoreError: another process holds it.
            WriteError: the folder cannot be written.
        """
        with _locked(self.root):
            try:
                for folder in ("", "versions", "runs", "refused", "groups/*", "tasks/*"):
                    for place in self.root.glob(folder) if folder else (self.root,):
                        sweep(place)
            except OSError as error:
                raise cannot_write(self.root, error) from error
            yield

    def verify(self, *, weights: bool = True) -> list[str]:
        """Compare every file with its checksum; return one line a finding."""
        from lcia.store.verify import verify

        return verify(self.root, weights=weights)

    def next_number(self) -> int:
        """Return a number that no version and no refused candidate ever had."""
        refused = (int(path.name[:4]) for path in (self.root / "refused").glob("[0-9]*"))
        return 1 + max([*self.numbers(), *refused])

    def begun(self, note: str) -> Version | None:
        """Return the version that this change of groups made before it was killed.

        It is whole, appeared by its rename and was never current: the same change would make the
        same again. None: there is no such version.
        """
        try:
            version, current = self.version(self.versions()[-1]), self.current
            manifest = version.manifest
            if (manifest["parent"], manifest.get("note")) != (current.number, note):
                return None
            version.check()
        except StoreError:
            return None  # damaged: the change is made anew; ``verify`` names what is wrong with it
        opened = manifest["groups"].keys() - current.manifest["groups"].keys()
        was_current = opened and _opened({"groups": opened}) <= self.groups_opened()
        return None if was_current else version

    def groups_opened(self) -> int:
        """Return how many groups all versions ever opened: no id is used again."""
        if "groups_opened" in self._record:
            return int(self._record["groups_opened"])
        return max(_opened(self.past(number).manifest) for number in self.numbers())

    def revise(
        self,
        codebook: InstructionCodebook,
        *,
        groups: Mapping[str, Any],
        adapters: Mapping[str, Path],
        scored: tuple[AccuracyMatrix, Sequence[Prediction]],
        note: str,
        more: Mapping[str, Any] | None = None,
    ) -> Version:
        """Commit a version in which groups changed but no task was learned, and make it current.

        Args:
            codebook: the changed groups.
            groups: group to manifest entry of adapters that stay as they are.
            adapters: group to folder of adapters that are new.
            scored: the matrix with its last row measured again, and the predictions behind it.
            note: what was done, for the history.
            more: what the manifest says otherwise than its parent's.
        """
        parent, number = self.current, self.next_number()
        matrix, predictions = scored
        manifest = {
            **{key: value for key, value in parent.manifest.items() if key != "forgets"},
            "version": number,
            "parent": parent.number,
            "task": None,
            "note": note,
            "group": None,
            "groups": groups,
            "metrics": summarise(matrix),
            "seconds": 0.0,
            **(more or {}),
        }
        with tempfile.TemporaryDirectory() as scratch:
            draft = Path(scratch)
            codebook.save(draft / "codebook.json")
            matrix.save(draft / "matrix.json")
            write_jsonl(draft / "predictions.jsonl", (p.to_json() for p in predictions))
            write_jsonl(draft / "journal.jsonl", [{"event": "revised", "note": note}])
            self.seal(draft, manifest, parent=parent, adapters=adapters)
            self.place_adapters(adapters, number)
            place_copy(draft, version_path(self.root, number))
        version = self.version(number)
        audit.record(self.root, "groups changed", version=number, parent=parent.number, note=note)
        self.point_to(version)
        return version

    def seal(
        self,
        draft: Path,
        manifest: Mapping[str, Any],
        *,
        parent: Version,
        adapters: Mapping[str, Path],
        task: tuple[str, Path] | None = None,
    ) -> None:
        """Write the manifest of a version to be, with the hash of every file it refers to.

        Args:
            draft: folder of the version's other files.
            manifest: all but schema, adapters that are new, and hashes.
            parent: the version it builds on.
            adapters: group to folder of adapters that are new.
            task: where the new task's files will be, and where they are.
        """
        number = manifest["version"]
        paths = {group: f"groups/{group}/{number:04d}" for group in adapters}
        groups = {**manifest["groups"], **{g: {"adapter": path} for g, path in paths.items()}}
        groups = {group: {"adapter": entry["adapter"]} for group, entry in groups.items()}
        places = {f"versions/{number:04d}": draft}
        places |= {path: adapters[group] for group, path in paths.items()}
        if task is not None:
            places[task[0]] = task[1]
        kept = [entry["adapter"] for entry in groups.values()] + list(manifest["tasks"].values())
        files = files_of(self.root, kept, known=parent.manifest.get("files", {}), new=places)
        record = {**manifest, "schema": SCHEMA, "groups": groups, "files": files}
        write_sealed(draft / "manifest.json", record)

    def place_adapters(self, adapters: Mapping[str, Path], number: int) -> None:
        """Copy adapters to where version ``number`` has them.

        Raises:
            DivergenceError: one of them holds values that are not finite; nothing was copied.
        """
        from lcia.store.finite import check_finite  # torch, which most verbs do without

        for folder in adapters.values():
            check_finite(folder)
        for group, folder in adapters.items():
            place_copy(folder, self.root / "groups" / group / f"{number:04d}")

    def point_to(self, version: Version) -> None:
        """Make a version current; a record of an earlier schema becomes one of this."""
        record = self.upgraded()
        opened = max(record["groups_opened"], _opened(version.manifest))
        self._write({**record, "groups_opened": opened, "current": version.number})

    def pinned_with(self, pin: Collection[int] = (), unpin: Collection[int] = ()) -> set[int]:
        """Return the versions that pruning keeps: those pinned before, and after a change.

        Raises:
            StoreError: there is no such version to pin.
        """
        for number in pin:
            self.version(number)
        return {*read_store_record(self.root).get("pinned", ()), *pin} - {*unpin}

    def give_up(self, numbers: Iterable[int], *, pinned: Collection[int]) -> None:
        """Record which versions nobody can go back to, before anything of them goes, and pins."""
        record = read_store_record(self.root)
        changed = {**record, "pruned": sorted(self.pruned.union(numbers))}
        changed["pinned"] = sorted(pinned)
        changed = {k: v for k, v in changed.items() if v or k not in {"pruned", "pinned"}}
        if changed != record:
            self._write(changed)

    def upgrade(self) -> None:
        """Write the record as this lcia does, if an earlier one wrote it."""
        if self._record.get("schema") != SCHEMA:
            self._write(self.upgraded())

    def upgraded(self) -> dict[str, Any]:
        """Return the record in this schema: versions that held no hashes are hashed in it."""
        record = read_store_record(self.root)
        if record["schema"] == SCHEMA:
            return record
        earlier = {}
        for number in self.versions():
            version = self.version(number)
            folders = [version.path, *(self.root / p for p in version.manifest["tasks"].values())]
            for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
                if path.is_file():
                    earlier[path.relative_to(self.root).as_posix()] = sha256_of(path)
        opened = {"groups_opened": self.groups_opened(), "earlier": earlier}
        return {**record, "schema": SCHEMA, **opened}

    def _known(self) -> str:
        return f"Versions: {', '.join(map(str, self.versions()))}."

    def _write(self, record: Mapping[str, Any]) -> None:
        write_sealed(self.root / "assistant.json", record)
        self._record = dict(record)


def read_store_record(root: Path) -> dict[str, Any]:
    """Return what ``assistant.json`` holds.

    Raises:
        StoreError: it is missing, damaged or of a later schema.
    """
    path = root / "assistant.json"
    refuse_links(root, [path])
    record = read_sealed(path)
    check_record(record, path)
    return record


def _remove_empty(store: Store) -> None:
    """Remove an assistant that has learned nothing and has begun nothing."""
    with store.writing():
        runs = store.root / "runs"
        empty = store.numbers() == [0] and not (runs.is_dir() and any(runs.iterdir()))
        if empty and not (store.root / "refused").exists():
            discard(store.root)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _opened(manifest: Mapping[str, Any]) -> int:
    found = (GROUP.fullmatch(group) for group in manifest["groups"])
    return max((int(match[1]) for match in found if match), default=0)


def _write_empty(root: Path, config: AssistantConfig, *, content_hash: str) -> None:
    empty = version_path(root, 0)
    empty.mkdir(parents=True)
    InstructionCodebook(config.resolve_grouping()).save(empty / "codebook.json")
    AccuracyMatrix.start().save(empty / "matrix.json")
    lineage: dict[str, Any] = {"version": 0, "parent": None, "task": None}
    manifest = {"schema": SCHEMA, **lineage, "groups": {}, "tasks": {}}
    files = files_of(root, [], known={}, new={"versions/0000": empty})
    write_sealed(empty / "manifest.json", {**manifest, "files": files})
    record = {
        "schema": SCHEMA,
        "model": {"name": config.model, "content_hash": content_hash},
        "settings": config.model_dump(mode="json"),
        "groups_opened": 0,
        "current": 0,
    }
    write_sealed(root / "assistant.json", record)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    lock = FileLock(root / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise StoreError(
            f"{root}: another process is changing this assistant. Wait for it to end."
        ) from error
    except OSError as error:
        raise cannot_write(root / ".lock", error) from error
    try:
        yield
    finally:
        lock.release()


def _sweep_drafts(root: Path) -> None:
    """Remove what killed processes left of assistants they were making here."""
    for draft in root.parent.glob(f".{glob.escape(root.name)}.new-????????"):
        with suppress(StoreError), _locked(draft):
            discard(draft)
