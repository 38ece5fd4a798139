"""Forgetting what somebody said: out of the database, and out of what an assistant keeps.

Weights are no list of samples: what adapters learned is named, not undone. Versions never change,
so samples leave with a new one, and are gone when ``lcia prune`` has removed the earlier ones.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, or_, select, update

from lcia.data import Sample
from lcia.errors import DataError
from lcia.files import checksums, place_copy
from lcia.grouping import told
from lcia.grouping.instruction import whole
from lcia.learner import Store, Version
from lcia.live.database import Database, feedback, files, jobs, receipts
from lcia.live.jobs import ENDED
from lcia.store import audit
from lcia.store.samples import (
    REMEMBERED,
    VALIDATION,
    Kept,
    keep_with,
    kept_with,
    read_samples,
    write_samples,
)
from lcia.store.transaction import clear, refuse_unfinished

LINE = "feedback-{number}:"
"""How the id of a sample begins that a correction became; see ``lcia.live.inbox``."""


class NothingToForgetError(DataError):
    """Nothing is known of the answer or the key."""


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What was removed, and what could not be.

    Attributes:
        receipts: of answers, removed.
        entries: of the inbox, removed.
        files: of training samples, removed or rewritten.
        version: the new one, without the samples; None where the current one held none.
        samples: which left it: remembered, held back and held out.
        learned: adapters, ``group@version``, that were trained on them; they stay as they are.
        remains: earlier versions that still hold samples.
    """

    receipts: int
    entries: int
    files: int
    version: int | None
    samples: int
    learned: tuple[str, ...]
    remains: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the database knows: ids of receipts, numbers of entries, tasks taught by the key."""

    receipts: tuple[str, ...]
    entries: tuple[int, ...]
    tasks: frozenset[str]
    jobs: tuple[Mapping[str, Any], ...]

    def holds(self, sample: str, task: str | None) -> bool:
        """Tell whether a sample, by its id and task, is to be forgotten."""
        head = sample.partition(":")[0] + ":"
        return task in self.tasks or head in {LINE.format(number=n) for n in self.entries}


def forget(
    store: Store, database: Database, *, receipt: str | None = None, key: str | None = None
) -> Forgotten:
    """Forget one answer and what was said about it, or all that came with a key.

    Killed in here, the same call goes on.

    Args:
        store: the assistant.
        database: of its receipts and feedback.
        receipt: id of the answer.
        key: name of the key; also what was asked, said and uploaded with it.

    Raises:
        NothingToForgetError: nothing is known of it.
        DataError: a job that has not ended learns from it.
        StoreError: a task is unfinished, or another process is changing the assistant.
    """
    with database.begin() as connection:
        found = _find(connection, receipt=receipt, key=key)
    if not (found.receipts or found.entries or found.jobs):
        what = f"the answer {receipt!r}" if receipt else f"the key {key!r}"
        raise NothingToForgetError(f"Nothing is known of {what}.")
    running = [job["id"] for job in found.jobs if job["status"] not in ENDED]
    if running:
        raise DataError(f"Job {running[0]} learns from it. Cancel it, or wait for its end, first.")
    version, samples = _leave_out(store, found)
    with database.begin() as connection:
        changed = _remove(connection, found)
    done = Forgotten(
        receipts=len(found.receipts),
        entries=len(found.entries),
        files=changed,
        version=version,
        samples=samples,
        learned=tuple(_trained_on(store, found)),
        remains=tuple(_holding(store, found, besides=version)),
    )
    told_of: dict[str, Any] = {"entries": done.entries, "samples": done.samples}
    audit.record(store.root, "forgotten", key=key, version=version, **told_of)
    return done


def _find(connection: Connection, *, receipt: str | None, key: str | None) -> _Found:
    by_key = receipts.c.key == key if key is not None else receipts.c.id == receipt
    ids = list(connection.execute(select(receipts.c.id).where(by_key)).scalars())
    said = feedback.c.receipt.in_(ids if receipt is None else [receipt])
    where = said if key is None else or_(said, feedback.c.key == key)
    rows = connection.execute(select(feedback.c.number, feedback.c.job).where(where)).all()
    entries = tuple(int(row[0]) for row in rows)
    own = jobs.c.key == key if key is not None else jobs.c.id.is_(None)
    corrects = jobs.c.id.in_([row[1] for row in rows if row[1]])
    found = [dict(row) for row in connection.execute(select(jobs).where(own | corrects)).mappings()]
    # A job that learns corrections holds those of others, too.
    tasks = {j["task"] for j in found if j["key"] == key and not j["settings"].get("corrects")}
    return _Found(
        receipts=tuple(ids),
        entries=entries,
        tasks=frozenset(tasks if key is not None else ()),
        jobs=tuple(found),
    )


def _remove(connection: Connection, found: _Found) -> int:
    """Remove rows, and lines of files; return how many files changed."""
    changed = 0
    for job in found.jobs:
        for file in dict.fromkeys(filter(None, (job["training_file"], job["validation_file"]))):
            where = files.c.id == file
            content = connection.execute(select(files.c.content).where(where)).scalar()
            if content is None:
                continue
            lines = content.splitlines(keepends=True) if job["task"] not in found.tasks else []
            kept = [line for line in lines if not found.holds(_id_of(line), None)]
            if not kept:
                connection.execute(delete(files).where(where))
            elif len(kept) < len(lines):
                left = b"".join(kept)
                connection.execute(update(files).where(where).values(content=left, bytes=len(left)))
            changed += not kept or len(kept) < len(lines)
    connection.execute(delete(feedback).where(feedback.c.number.in_(found.entries)))
    connection.execute(delete(receipts).where(receipts.c.id.in_(found.receipts)))
    return changed


def _id_of(line: bytes) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return ""
    return str(record.get("id", "")) if isinstance(record, dict) else ""


def _leave_out(store: Store, found: _Found) -> tuple[int | None, int]:
    """Publish a version without the samples; return its number and how many left."""
    with store.writing(), tempfile.TemporaryDirectory() as scratch:
        clear(store)
        refuse_unfinished(store)
        store.upgrade()
        current = store.current
        gone: list[Sample] = []
        adapters: dict[str, Path] = {}
        for group, (_, folder) in current.adapters.items():
            kept = {name: kept_with(folder, name) for name in (REMEMBERED, VALIDATION)}
            without = {name: _without(pairs, found, gone) for name, pairs in kept.items()}
            if without != kept:
                adapters[group] = _copied(folder, Path(scratch) / group, without)
        tasks, moved = _tasks(store, current, found, gone, Path(scratch))
        if not gone:
            return None, 0
        prompts = {whole(told(sample.messages)).strip() for sample in gone}
        codebook = current.codebook()
        codebook.forget(prompts, tasks=found.tasks)
        predictions = [p for p in current.predictions() if not found.holds(p.sample, p.task)]
        for place, folder in moved.items():
            place_copy(folder, store.root / place)
        made = store.revise(
            codebook,
            groups={g: e for g, e in current.manifest["groups"].items() if g not in adapters},
            adapters=adapters,
            scored=(current.matrix(), predictions),
            note=f"forget {len(gone)} samples",
            more={"tasks": tasks, "forgets": True},
        )
        return made.number, len(gone)


def _without(pairs: Kept, found: _Found, gone: list[Sample]) -> Kept:
    gone += [sample for sample, task in pairs if found.holds(sample.id, task)]
    return [(sample, task) for sample, task in pairs if not found.holds(sample.id, task)]


def _copied(source: Path, target: Path, kept: Mapping[str, Kept]) -> Path:
    without = shutil.ignore_patterns(REMEMBERED, VALIDATION, "images")
    shutil.copytree(source, target, ignore=without)
    for name, pairs in kept.items():
        keep_with(target, name, pairs)
    return target


def _tasks(
    store: Store, current: Version, found: _Found, gone: list[Sample], scratch: Path
) -> tuple[dict[str, str], dict[str, Path]]:
    """Return where each task's held-out samples will be, and the folders that are new.

    A task none of whose samples is left is scored no more.
    """
    tasks: dict[str, str] = {}
    moved: dict[str, Path] = {}
    for name, place in current.manifest["tasks"].items():
        samples = read_samples(store.root / place / "samples.jsonl")
        kept = [sample for sample in samples if not found.holds(sample.id, name)]
        gone += [sample for sample in samples if found.holds(sample.id, name)]
        if len(kept) == len(samples):
            tasks[name] = place
        elif kept:
            folder = scratch / "tasks" / name
            folder.mkdir(parents=True)
            shutil.copyfile(store.root / place / "task.json", folder / "task.json")
            write_samples(folder / "samples.jsonl", kept)
            digest = checksums(folder)["samples.jsonl"][:12]
            tasks[name] = f"tasks/{name}/{digest}"
            if not (store.root / tasks[name]).exists():
                moved[tasks[name]] = folder
    return tasks, moved


def _trained_on(store: Store, found: _Found) -> Iterator[str]:
    """Yield the adapters of versions that learned the samples, as far as they are there."""
    taught = {job["task"] for job in found.jobs if job["version"] is not None}
    for number in store.numbers():
        manifest = store.past(number).manifest
        if manifest["task"] in taught:
            yield f"{manifest['group']}@{number:04d}"


def _holding(store: Store, found: _Found, *, besides: int | None) -> Iterator[int]:
    """Yield the versions in which samples still stand."""
    for number in store.numbers():
        kept = _kept_in(store.past(number))
        if number != besides and any(found.holds(sample, task) for sample, task in kept):
            yield number


def _kept_in(version: Version) -> Iterator[tuple[str, str | None]]:
    """Yield the samples that a version keeps, held out and answered, by id and task."""
    for _, folder in version.adapters.values():
        for name in (REMEMBERED, VALIDATION):
            yield from ((sample.id, task) for sample, task in kept_with(folder, name))
    for name, place in version.manifest["tasks"].items():
        path = version.root / place / "samples.jsonl"
        yield from ((sample.id, name) for sample in (read_samples(path) if path.exists() else ()))
    yield from ((p.sample, p.task) for p in version.predictions())
