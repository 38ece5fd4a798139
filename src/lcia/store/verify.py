"""Whether every file of an assistant is as it was stored."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lcia.distributed.plan import COMPLETE
from lcia.errors import StoreError
from lcia.files import LINES_LIMIT, checksums, files_below, is_leftover, read_sealed, sha256_of
from lcia.store import audit
from lcia.store.journal import check_journal
from lcia.store.prune import is_emptied
from lcia.store.store import Store
from lcia.store.transaction import PLAN, PROPOSAL, REPORT, abandoning
from lcia.store.version import Version, check_proposal, version_path

WEIGHTS = ".safetensors"
UNREAD, TOO_LARGE = "unread", "too large"
"""What stands for the checksum of a file whose content was not read."""

Progress = Callable[[int, int], None]


def verify(
    root: Path, *, weights: bool = True, progress: Progress = lambda done, total: None
) -> list[str]:
    """Compare every file of an assistant with its checksum.

    A run that is not finished is checked as far as it would be resumed from: its plan, what it
    recorded as done, complete checkpoints and its journal. Half-written files are never read.

    Args:
        root: the assistant's directory.
        weights: whether safetensors are read, too; without, a large store takes a second.
        progress: told how many bytes of the versions are read, and of how many at most.

    Returns:
        One line a finding: file, version, what is wrong, what to do.
    """
    try:
        store = Store.open_unchecked(root)
    except StoreError as error:
        return [str(error)]
    checker = _Checker(store, weights=weights, progress=progress)
    findings = list(checker.links())
    findings += checker.read(store.numbers())
    if findings:
        return findings
    return [
        *audit.check(store.root),
        *checker.lineage(),
        *checker.versions(),
        *checker.refused(),
        *checker.runs(),
    ]


class _Checker:
    """Hashes each file once, whatever number of versions refers to it."""

    def __init__(self, store: Store, *, weights: bool, progress: Progress) -> None:
        self.store = store
        self.root = store.root
        self.weights = weights
        self._progress = progress
        self._read, self._size = 0, 0
        self._known: dict[str, str | None] = {}
        self._places: dict[str, set[str]] = {}
        self._pruned = store.pruned
        self._forgot = 0
        self._parents: dict[int, int] = {}
        self._wrong: dict[int, dict[str, str]] = {}

    def links(self) -> Iterator[str]:
        """Yield what is neither file nor folder."""
        try:
            for path in files_below(self.root):
                with suppress(FileNotFoundError):  # somebody else tidies up
                    self._size += path.stat().st_size
        except StoreError as error:
            yield str(error)

    def read(self, numbers: Iterable[int]) -> list[str]:
        """Compare the files of versions, one manifest in memory at a time; return unread ones.

        The newest first: what forgot samples is known before what that emptied is looked at.
        """
        findings = []
        for number in sorted(numbers, reverse=True):
            try:
                version = self.store.past(number)
            except StoreError as error:
                findings.append(f"version {number}: {error} {self.way_back([number])}")
                continue
            if version.manifest.get("forgets"):
                self._forgot = max(self._forgot, number)
            self._parents[number] = version.manifest["parent"]
            self._wrong[number] = dict(self._version(version))
        return findings[::-1]

    def lineage(self) -> Iterator[str]:
        """Yield versions that are gone though others build on them."""
        for number, parent in sorted(self._parents.items()):
            if number and parent not in self._parents:
                gone = version_path(self.root, parent)
                yield f"{gone} (version {parent}): is missing. Put the folder back from a copy."

    def versions(self) -> Iterator[str]:
        """Yield what differs in the files of versions, once each."""
        wrong: dict[str, tuple[str, list[int]]] = {}
        whole = []
        for number, found in sorted(self._wrong.items()):
            for path, problem in found.items():
                wrong.setdefault(path, (problem, []))[1].append(number)
            if not found and number not in self._pruned:
                whole.append(number)
        for path, (problem, numbers) in wrong.items():
            named = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
            kind = "version" if len(numbers) == 1 else "versions"
            yield f"{self.root / path} ({kind} {named}): {problem}. {self.way_back(numbers, whole)}"

    def way_back(self, damaged: list[int], whole: list[int] | None = None) -> str:
        """Return what to do about damaged versions."""
        remedy = "Put the file back from a copy"
        if self.store.current_number in damaged and whole:
            return f"{remedy}, or go back: lcia rollback {self.root} {max(whole)}."
        return f"{remedy}."

    def refused(self) -> Iterator[str]:
        """Yield what differs in candidates that the gate refused."""
        folder = self.root / "refused"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if is_leftover(path.name):
                continue
            number = path.name.partition("-")[0].lstrip("0")
            remedy = f"Remove it: lcia abandon {self.root} --refused {number}."
            yield from self._run(path, remedy, (PLAN, PROPOSAL, REPORT))

    def runs(self) -> Iterator[str]:
        """Yield what differs in runs that are not finished."""
        folder = self.root / "runs"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not is_leftover(path.name):
                remedy = f"Give the run up: {abandoning(self.root)}."
                yield from self._run(path, remedy, (PLAN,))

    def _version(self, version: Version) -> Iterator[tuple[str, str]]:
        earlier = self.store.earlier
        folder = version.path.relative_to(self.root).as_posix()
        places = [folder, *version.manifest["tasks"].values()]
        groups = list(version.manifest["groups"].values())
        wanted: dict[str, str] = dict(version.manifest.get("files", {}))
        if "files" not in version.manifest:  # schema 1
            below = tuple(f"{place}/" for place in places)
            wanted |= {path: s for path, s in earlier.items() if path.startswith(below)}
            wanted |= {
                f"{entry['adapter']}/{name}": value
                for entry in groups
                for name, value in entry.get("sha256", {}).items()
            }
        if version.number in self._pruned:
            places, groups = [folder], []
            wanted = {
                path: s
                for path, s in wanted.items()
                if path.startswith(f"{folder}/") and not self._emptied(version.number, path)
            }
        for path, value in wanted.items():
            if problem := self._problem(path, value):
                yield path, problem
        if "files" in version.manifest:
            known = {*version.manifest["files"], f"{folder}/manifest.json"}
            for place in [*places, *(entry["adapter"] for entry in groups)]:
                for name in sorted(self._names(place) - known):
                    yield name, "is not one of the version's files"

    def _emptied(self, number: int, path: str) -> bool:
        return number < self._forgot and is_emptied(self.root / path)

    def _problem(self, path: str, wanted: str) -> str | None:
        """Return what is wrong with a file; each is read once, though many versions name it."""
        if path not in self._known:
            self._known[path] = self._sum(path)
        found = self._known[path]
        if found in (wanted, UNREAD):
            return None
        if found == TOO_LARGE:
            return f"has more than {LINES_LIMIT:,} bytes, which lcia never writes"
        return "is missing" if found is None else "differs from its checksum"

    def _sum(self, path: str) -> str | None:
        """Return the checksum of a file, or why it was not read; None if it is missing."""
        file = self.root / path
        if not file.is_file():
            return None
        size = file.stat().st_size
        self._read += size
        self._progress(self._read, self._size)
        if path.endswith(WEIGHTS):
            return sha256_of(file) if self.weights else UNREAD
        return TOO_LARGE if size > LINES_LIMIT else sha256_of(file)

    def _names(self, place: str) -> set[str]:
        """Return the files of a folder; each folder is looked at once."""
        if place not in self._places:
            self._places[place] = self._look(place)
        return self._places[place]

    def _look(self, place: str) -> set[str]:
        folder = self.root / place
        found = (path for path in files_below(folder) if not is_leftover(path.name))
        return {path.relative_to(self.root).as_posix() for path in found}

    def _run(self, folder: Path, remedy: str, sealed: tuple[str, ...]) -> Iterator[str]:
        plan: dict[str, Any] = {}
        try:
            for name in sealed:
                record = read_sealed(folder / name)
                plan = plan or record
            schema_1 = plan.get("schema", 1) == 1
            done = folder / "done.json"
            files = read_sealed(done).get("files", {}) if done.is_file() else {}
            for path, wanted in files.items():
                if not self.weights and path.endswith(WEIGHTS):
                    continue
                if not (folder / path).is_file() or sha256_of(folder / path) != wanted:
                    yield f"{folder / path}: differs from its checksum. {remedy}"
            for marker in sorted(folder.glob(f"checkpoints/checkpoint-*/{COMPLETE}")):
                yield from self._checkpoint(marker, remedy)
            check_journal(folder / "journal.jsonl", summed=not schema_1)
            if (folder / PROPOSAL).is_file():
                yield from self._proposal(folder, remedy)
        except StoreError as error:
            yield f"{error} {remedy}"

    def _proposal(self, folder: Path, remedy: str) -> Iterator[str]:
        """Check a proposed version's own files, and the task's, where they are now."""
        proposal = read_sealed(folder / PROPOSAL)
        check_proposal(proposal, folder / PROPOSAL)
        manifest = read_sealed(folder / "version" / "manifest.json")
        places = {f"versions/{manifest['version']:04d}": "version", proposal["task"]: "task"}
        for group, path in proposal["adapters"].items():
            places[f"groups/{group}/{manifest['version']:04d}"] = path
        for path, wanted in manifest["files"].items():
            place = next((p for p in places if path.startswith(f"{p}/")), None)
            if place is None or (not self.weights and path.endswith(WEIGHTS)):
                continue
            now = folder / places[place] / path.removeprefix(f"{place}/")
            if not now.is_file() or sha256_of(now) != wanted:
                yield f"{now}: differs from its checksum. {remedy}"

    def _checkpoint(self, marker: Path, remedy: str) -> Iterator[str]:
        record = read_sealed(marker)
        if "files" not in record:
            return  # schema 1
        found = checksums(marker.parent) if self.weights else None
        for name, wanted in record["files"].items():
            if found is not None and found.get(name) != wanted:
                yield f"{marker.parent / name}: differs from its checksum. {remedy}"
