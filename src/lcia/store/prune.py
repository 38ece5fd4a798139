"""Removing versions that nobody will go back to, and what they alone need."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from lcia.files import discard, files_below, sync_folder, write_bytes
from lcia.grouping import InstructionCodebook
from lcia.store.store import Store
from lcia.store.transaction import refused, unfinished
from lcia.store.version import version_path

TOLD = ("predictions.jsonl", "base.jsonl", "current.jsonl", "codebook.json")
"""A version's files that hold prompts, answers and instructions."""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What pruning an assistant removes.

    Attributes:
        kept: versions that can be gone back to.
        pinned: those of them that every pruning keeps until they are unpinned.
        told: versions that led to one of those. Only what they tell stays: scores, answers,
            journal.
        emptied: files of those that hold prompts: samples were forgotten since.
        removed: all others, of which nothing stays.
        folders: of adapters and held-out samples that no kept version has.
        size_bytes: of everything that is removed.
    """

    kept: list[int]
    pinned: list[int]
    told: list[int]
    removed: list[int]
    emptied: list[Path]
    folders: list[Path]
    size_bytes: int


def plan(
    store: Store,
    *,
    keep_last: int,
    keep_every: int | None = None,
    pin: Collection[int] = (),
    unpin: Collection[int] = (),
) -> Pruning:
    """Say what ``prune`` would remove.

    Args:
        store: the assistant.
        keep_last: how many of the newest versions are kept, at least one: so no number is given
            twice.
        keep_every: versions whose number is a multiple of it are kept, too.
        pin: versions that are kept, now and by every later pruning.
        unpin: versions that are no longer.

    Raises:
        ValueError: a number below one.
        StoreError: there is no such version to pin, or a version, an unfinished run or a refused
            candidate is damaged.
    """
    if keep_last < 1 or (keep_every is not None and keep_every < 1):
        raise ValueError(f"keep_last {keep_last}, keep_every {keep_every}: expected at least 1")
    versions = store.versions()
    current = store.current
    pinned = store.pinned_with(pin, unpin)
    kept = {0, current.number, *versions[-keep_last:], *pinned}
    kept |= {n for n in versions if keep_every is not None and n % keep_every == 0}
    runs = [unfinished(store), *(run for run, _ in refused(store).values())]
    # A version that forgets samples is not gone back from: the one before has them still.
    before = () if current.manifest.get("forgets") else (current.manifest["parent"],)
    kept |= {*before, *(run.parent for run in runs if run)} & set(versions)
    led = _ancestors(store, kept) - kept
    removed = [n for n in store.numbers() if n not in kept | led]
    manifests = [store.version(number).manifest for number in kept]
    needed = {entry["adapter"] for m in manifests for entry in m["groups"].values()}
    needed |= {place for m in manifests for place in m["tasks"].values()}
    folders = [
        folder
        for kind in ("groups", "tasks")
        for folder in sorted(store.root.glob(f"{kind}/*/[!.]*"))
        if folder.relative_to(store.root).as_posix() not in needed
    ]
    emptied = [
        path
        for number in sorted(led)
        for path in (version_path(store.root, number) / name for name in TOLD)
        if number < last_forgetting(store) and path.is_file() and not is_emptied(path)
    ]
    gone = [*folders, *(version_path(store.root, number) for number in removed)]
    return Pruning(
        kept=sorted(kept),
        pinned=sorted(pinned),
        told=sorted(led),
        removed=removed,
        emptied=emptied,
        folders=folders,
        size_bytes=sum(path.stat().st_size for folder in gone for path in files_below(folder)),
    )


def prune(
    store: Store,
    *,
    keep_last: int,
    keep_every: int | None = None,
    pin: Collection[int] = (),
    unpin: Collection[int] = (),
) -> Pruning:
    """Remove versions; see ``plan``.

    Never the current one, nor the one before it, from which a server may still answer, nor one that
    an unfinished run or a refused candidate builds on. Killed in here, the same call goes on: first
    the record says what cannot be gone back to, then versions go, the newest first, then what none
    refers to.

    Raises:
        StoreError: as ``plan``, or another process is changing the assistant.
    """
    with store.writing():
        store.upgrade()
        pruning = plan(store, keep_last=keep_last, keep_every=keep_every, pin=pin, unpin=unpin)
        store.give_up([*pruning.told, *pruning.removed], pinned=pruning.pinned)
        for number in reversed(pruning.removed):
            discard(version_path(store.root, number))
        for path in pruning.emptied:
            _empty(path)
        for folder in pruning.folders:
            discard(folder)
        for empty in [*store.root.glob("groups/*"), *store.root.glob("tasks/*")]:
            if not any(empty.iterdir()):
                empty.rmdir()
                sync_folder(empty.parent)
    return pruning


def is_emptied(path: Path) -> bool:
    """Tell whether pruning removed what a file told, since samples were forgotten."""
    if path.name not in TOLD or not path.is_file():
        return False
    if path.name != "codebook.json":
        return path.stat().st_size == 0
    return not InstructionCodebook.load(path).groups


def _empty(path: Path) -> None:
    if path.name == "codebook.json":
        InstructionCodebook(InstructionCodebook.load(path).config).save(path)
    else:
        write_bytes(path, b"")


def last_forgetting(store: Store) -> int:
    """Return the last version that forgot samples; 0 if there is none."""
    numbers = (n for n in reversed(store.numbers()) if store.past(n).manifest.get("forgets"))
    return next(numbers, 0)


def _ancestors(store: Store, numbers: Iterable[int]) -> set[int]:
    found: set[int] = set()
    for number in numbers:
        while number and (number := store.past(number).manifest["parent"]) not in found:
            found.add(number)
    return found
