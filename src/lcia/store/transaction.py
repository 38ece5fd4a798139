"""Learning as a transaction: begin or resume a run; commit, refuse or abandon what came of it.

A run is a folder below ``runs/``. Its version appears by one rename, ``current`` moves last; every
step can be repeated, so a process killed in here goes on when it is run again.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcia.data.sample import Task
from lcia.errors import StoreError
from lcia.files import (
    check_sum,
    checksums,
    discard,
    make_folders,
    place_copy,
    read_sealed,
    settle,
    sync_folder,
    sync_tree,
    write_json,
    write_sealed,
)
from lcia.store import audit
from lcia.store.samples import write_samples
from lcia.store.store import Store
from lcia.store.version import SCHEMA, Version, check_proposal, refuse_links, version_path

PLAN, DONE, PROPOSAL, REPORT = "plan.json", "done.json", "proposal.json", "report.json"
DRAFT, TASK = "version", "task"
"""Folders of a run: the version's own files, and the task's held-out samples."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A task being learned: a folder with whatever is done so far.

    Attributes:
        folder: deleted when the version it leads to is committed.
        number: of that version.
        parent: the version it builds on.
        task: name of the task.
        fingerprint: of the task's content and the assistant's settings.
        schema: of the lcia that began it.
    """

    folder: Path
    number: int
    parent: int
    task: str
    fingerprint: str
    schema: int = 1

    @property
    def told(self) -> dict[str, Any]:
        """What the audit log says of it."""
        return {"version": self.number, "parent": self.parent, "task": self.task}

    @property
    def done(self) -> dict[str, str]:
        """The files that are finished, by their path in the folder, with their SHA-256."""
        path = self.folder / DONE
        return dict(read_sealed(path).get("files", {})) if path.is_file() else {}

    def holds(self, name: str) -> bool:
        """Tell whether a file or folder is finished, after comparing it with its checksums.

        Raises:
            StoreError: it was finished and is damaged.
        """
        files = {p: s for p, s in self.done.items() if p == name or p.startswith(f"{name}/")}
        for path, wanted in files.items():
            try:
                check_sum(self.folder / path, wanted)
            except StoreError as error:
                raise StoreError(f"{error} Or give the run up: {abandoning(self.root)}.") from error
        return bool(files) or (self.schema == 1 and (self.folder / name).exists())

    def record(self, name: str) -> None:
        """Record that a file or folder is finished, after all of it is on disk."""
        path = self.folder / name
        if path.is_dir():
            sync_tree(path)
        found = checksums(self.folder / name) if path.is_dir() else {}
        files = {f"{name}/{inner}": value for inner, value in found.items()}
        if not files:
            files = {name: checksums(path.parent)[path.name]}
        others = {p: s for p, s in self.done.items() if p != name and not p.startswith(f"{name}/")}
        write_sealed(self.folder / DONE, {"schema": SCHEMA, "files": {**others, **files}})

    @property
    def root(self) -> Path:
        """The assistant's directory."""
        return self.folder.parent.parent


def begin(store: Store, task: str, fingerprint: Callable[[int], str]) -> Run:
    """Return the run that learns a task on the current version: the interrupted one, or new.

    Args:
        store: the assistant; only one process may be here.
        task: name of the task.
        fingerprint: schema to fingerprint: a run of an earlier lcia has an earlier one.

    Raises:
        StoreError: another task is unfinished, or this one with other data.
    """
    clear(store)
    current = store.current.number
    if found := unfinished(store):
        if (found.fingerprint, found.parent) == (fingerprint(found.schema), current):
            return found
        raise StoreError(way_out(store, found))
    store.upgrade()
    number = store.next_number()
    plan: dict[str, Any] = {
        "number": number,
        "parent": current,
        "task": task,
        "fingerprint": fingerprint(SCHEMA),
        "schema": SCHEMA,
    }
    folder = store.root / "runs" / f"{number:04d}-{task}"
    draft = folder.with_name(f".{folder.name}.tmp")
    make_folders(draft)
    write_sealed(draft / PLAN, plan)
    settle(draft, folder)
    return Run(folder=folder, **plan)


def unfinished(store: Store) -> Run | None:
    """Return the run of a task that was begun and neither committed nor given up."""
    for path in sorted((store.root / "runs").glob(f"*/{PLAN}")):
        run = _read_run(path)
        committed = version_path(store.root, run.number).is_dir()
        if not committed or run.parent == store.current.number:
            return run
    return None


def refuse_unfinished(store: Store) -> None:
    """Refuse to change groups while a task is unfinished.

    Raises:
        StoreError: one is.
    """
    if run := unfinished(store):
        raise StoreError(way_out(store, run))


def way_out(store: Store, run: Run) -> str:
    """Return the message that says what to do about an unfinished run."""
    head = f"{store.root}: the task '{run.task}' is unfinished"
    if run.parent == store.current.number:
        return (
            f"{head}. Continue it with the command that began it, or give it up: "
            f"{abandoning(store.root)}."
        )
    return (
        f"{head} and builds on version {run.parent}, but version {store.current.number} is "
        f"current. Give it up: {abandoning(store.root)}; or go back to it: lcia rollback "
        f"{store.root} {run.parent}, and continue with the command that began it."
    )


def abandoning(root: Path) -> str:
    """Return the command that gives an unfinished task up."""
    return f"lcia abandon {root}"


def clear(store: Store) -> None:
    """Remove runs that are committed, folders of runs that never began, and runs that were refused.

    Of those, a loss of power may have kept the name from before they were moved, too.
    """
    current = store.current.number
    folder = store.root / "runs"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        moved = (store.root / "refused" / path.name / REPORT).is_file()
        if moved or not (path / PLAN).is_file():
            discard(path)
            continue
        run = _read_run(path / PLAN)
        if version_path(store.root, run.number).is_dir() and run.parent != current:
            discard(path)


def abandon(store: Store) -> Run:
    """Give up the unfinished task: what is done of it is removed.

    Raises:
        StoreError: no task is unfinished, or another process is learning it.
    """
    with store.writing():
        folders = sorted(p for p in (store.root / "runs").glob("[!.]*") if p.is_dir())
        if not folders:
            raise StoreError(f"{store.root}: no task is unfinished; there is nothing to give up.")
        number, _, task = folders[0].name.partition("-")
        for folder in folders:  # whatever its plan says: it may be damaged
            discard(folder)
        return Run(
            folder=folders[0],
            number=int(number) if number.isdigit() else 0,
            parent=store.current.number,
            task=task,
            fingerprint="",
        )


def propose(
    store: Store,
    run: Run,
    task: Task,
    *,
    group: str,
    adapters: Mapping[str, Path],
    contents: Mapping[str, Any],
) -> None:
    """Complete what a run leads to: the version's files, its manifest, and what goes beside.

    Args:
        store: the assistant.
        run: its folder holds the version's other files in ``version/``.
        task: the task just learned.
        group: the group that learned it.
        adapters: group to folder of adapters that are new, ``group``'s among them.
        contents: what the manifest says beyond lineage, groups and tasks.
    """
    parent = store.version(run.parent)
    kept = run.folder / TASK
    write_task(task, kept)
    place = _place_of(store, task, kept)
    manifest = {
        "version": run.number,
        "parent": run.parent,
        "task": task.name,
        "fingerprint": run.fingerprint,
        "fingerprint_schema": run.schema,
        "group": group,
        "groups": parent.manifest["groups"],
        "tasks": {**parent.manifest["tasks"], task.name: place},
        **contents,
    }
    draft = run.folder / DRAFT
    store.seal(draft, manifest, parent=parent, adapters=adapters, task=(place, kept))
    for folder in (draft, *adapters.values()):
        sync_tree(folder)
    folders = {g: folder.relative_to(run.folder).as_posix() for g, folder in adapters.items()}
    write_sealed(run.folder / PROPOSAL, {"schema": SCHEMA, "adapters": folders, "task": place})


def commit(store: Store, run: Run) -> Version:
    """Commit what a run proposes as a version, make it current and delete the run."""
    refuse_links(store.root, [run.folder])
    proposal = read_sealed(run.folder / PROPOSAL)
    check_proposal(proposal, run.folder / PROPOSAL)
    target = version_path(store.root, run.number)
    if not target.exists():
        adapters = {group: run.folder / path for group, path in proposal["adapters"].items()}
        store.place_adapters(adapters, run.number)
        place_copy(run.folder / TASK, store.root / proposal["task"])
        place_copy(run.folder / DRAFT, target)
    version = store.version(run.number)
    forced = (run.folder / REPORT).is_file()
    what = "accepted although refused" if forced else "released"
    audit.record(store.root, what, once=True, **run.told)
    store.point_to(version)
    discard(run.folder)
    return version


def refuse(store: Store, run: Run, report: Mapping[str, Any]) -> Path:
    """Keep a candidate that may not become a version, with its report; return its folder.

    It is told before the candidate is moved: moved, it is not refused again by the same command.
    Killed in here, it is told once; the number of a candidate that was forgotten comes again.
    """
    discard(run.folder / "checkpoints")
    again = (run.folder / REPORT).is_file()
    write_sealed(run.folder / REPORT, {"schema": SCHEMA, **report})
    audit.record(store.root, "refused", once=again, **run.told)
    target = store.root / "refused" / run.folder.name
    make_folders(target.parent)
    settle(run.folder, target)
    sync_folder(run.folder.parent)
    return target


def refused(store: Store) -> dict[int, tuple[Run, dict[str, Any]]]:
    """Return the refused candidates by number, each with its report."""
    found = {}
    for path in sorted((store.root / "refused").glob(f"*/{REPORT}")):
        run = _read_run(path.with_name(PLAN))
        found[run.number] = run, read_sealed(path)
    return found


def accept(store: Store, number: int, *, reason: str | None = None) -> Version:
    """Make a refused candidate the current version after all; one that was killed in here goes on.

    Args:
        store: the assistant.
        number: of the candidate.
        reason: why, for the version's manifest, where ``released`` says so beside what refused it.

    Raises:
        StoreError: there is none of that number, it builds on another version than the current
            one, or a task is unfinished.
    """
    with store.writing():
        clear(store)
        if store.current_number == number:
            return store.current
        if (run := unfinished(store)) and run.number == number and (run.folder / REPORT).is_file():
            return commit(store, run)
        run = _refused(store, number)
        refuse_unfinished(store)
        if run.parent != store.current.number:
            raise StoreError(
                f"{run.folder}: builds on version {run.parent}, but version "
                f"{store.current.number} is current. Go back to it first: lcia rollback "
                f"{store.root} {run.parent}."
            )
        if reason is not None:
            path = run.folder / DRAFT / "manifest.json"
            why = {"reason": reason, "refused": read_sealed(run.folder / REPORT)["why"]}
            write_sealed(path, {**read_sealed(path), "released": why})
        target = store.root / "runs" / run.folder.name
        make_folders(target.parent)
        os.replace(run.folder, target)
        for folder in (target.parent, run.folder.parent):
            sync_folder(folder)
        return commit(store, Run(**{**vars(run), "folder": target}))


def forget_refused(store: Store, number: int) -> Run:
    """Remove a refused candidate.

    Raises:
        StoreError: there is none of that number.
    """
    with store.writing():
        for folder in (store.root / "refused").glob(f"{number:04d}-*"):
            task = folder.name.partition("-")[2]
            discard(folder)  # whatever is in it: it may be damaged
            return Run(folder=folder, number=number, parent=0, task=task, fingerprint="")
        return _refused(store, number)


def _refused(store: Store, number: int) -> Run:
    found = refused(store)
    if number not in found:
        known = ", ".join(map(str, found)) or "none"
        raise StoreError(
            f"{store.root}: has no refused candidate {number}. Refused candidates: {known}."
        )
    return found[number][0]


def _read_run(path: Path) -> Run:
    plan = read_sealed(path)
    kinds = {"number": int, "parent": int, "task": str, "fingerprint": str}
    if not all(isinstance(plan.get(key), kind) for key, kind in kinds.items()):
        raise StoreError(
            f"{path}: expected the plan of a run. Give the run up: "
            f"{abandoning(path.parent.parent.parent)}."
        )
    known = {key: plan[key] for key in (*kinds, "schema") if key in plan}
    return Run(folder=path.parent, **known)


def _place_of(store: Store, task: Task, kept: Path) -> str:
    """Return where a task's files go: a folder of the same content, or one that is not there."""
    base = Path("tasks") / task.name / task.fingerprint()[:12]
    place, again = base, 1
    while (store.root / place).exists() and checksums(store.root / place) != checksums(kept):
        again += 1
        place = base.with_name(f"{base.name}-{again}")
    return place.as_posix()


def write_task(task: Task, folder: Path) -> None:
    """Write what a store keeps of a task: how it is scored, and its held-out samples."""
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch)
        about = {
            "scorer": task.scorer,
            "instruction": task.instruction,
            "max_new_tokens": task.max_new_tokens,
        }
        write_json(draft / "task.json", about)
        write_samples(draft / "samples.jsonl", task.test)
        place_copy(draft, folder)
