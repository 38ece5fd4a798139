"""Fine-tuning jobs: a queue in the database.

A job ends once: every change of its status is one conditional statement, which says from which
statuses it may come.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, select, update

from lcia.errors import DataError
from lcia.live.database import Database, events, files, jobs, new_id, now
from lcia.store import audit

QUEUED, RUNNING, PAUSED = "queued", "running", "paused"
SUCCEEDED, FAILED, CANCELLED = "succeeded", "failed", "cancelled"
ENDED = (SUCCEEDED, FAILED, CANCELLED)

Job = dict[str, Any]

_UNWANTED = jobs.c.wanted.is_(None)


class NoJobError(DataError):
    """There is no job of that id."""


class JobStateError(DataError):
    """A job is not in a state in which this can be done."""


class Jobs:
    """The jobs of one assistant.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, **fields: Any) -> Job:
        """Put a job into the queue; see ``enqueue``."""
        with self._database.begin() as connection:
            made = enqueue(connection, **fields)
        audit.record(self._database.root, "job queued", job=made["id"], task=made["task"])
        return made

    def get(self, job: str) -> Job:
        """Return a job.

        Raises:
            NoJobError: there is none of that id.
        """
        with self._database.begin() as connection:
            return _get(connection, job)

    def listed(
        self, *, after: str | None, limit: int, metadata: Mapping[str, str] | None = None
    ) -> tuple[list[Job], bool]:
        """Return jobs, the newest first, from the one after ``after``, and whether there are more.

        Raises:
            NoJobError: there is no job ``after``.
        """
        asked = select(jobs).order_by(jobs.c.number.desc())
        with self._database.begin() as connection:
            if after is not None:
                asked = asked.where(jobs.c.number < _get(connection, after)["number"])
            if not metadata:
                asked = asked.limit(limit + 1)
            rows = [dict(row) for row in connection.execute(asked).mappings()]
        if metadata:
            rows = [r for r in rows if metadata.items() <= (r["metadata"] or {}).items()]
        return rows[:limit], len(rows) > limit

    def events(
        self, job: str, *, after: str | None, limit: int
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return what happened to a job, the latest first, and whether there is more.

        Raises:
            NoJobError: there is no such job, or no event ``after``.
        """
        asked = select(events).where(events.c.job == job).order_by(events.c.number.desc())
        if after is not None:
            number = after.removeprefix("ftevent-")
            if not (number.isascii() and number.isdigit()):
                raise NoJobError(f"Could not find event: {after}")
            asked = asked.where(events.c.number < int(number))
        with self._database.begin() as connection:
            _get(connection, job)
            rows = [dict(r) for r in connection.execute(asked.limit(limit + 1)).mappings()]
        return rows[:limit], len(rows) > limit

    def tell(self, job: str, message: str, *, level: str = "info") -> None:
        """Add an event to a job."""
        with self._database.begin() as connection:
            _tell(connection, job, message, level=level)

    def cancel(self, job: str) -> Job:
        """End a job that waits; ask the worker to end one that runs, between two of its steps.

        Raises:
            NoJobError: there is no such job.
            JobStateError: it has ended.
        """
        with self._changing(job, "job cancelled") as connection:
            ended = {"status": CANCELLED, "finished_at": now(), "wanted": None}
            if _move(connection, job, (QUEUED, PAUSED), **ended):
                _tell(connection, job, "The job was cancelled")
            elif not _move(connection, job, (RUNNING,), wanted=CANCELLED):
                raise _refused(_get(connection, job), "cancelled")
            return _get(connection, job)

    def pause(self, job: str) -> Job:
        """Keep a job from being taken; ask the worker to put one aside that runs.

        Raises:
            NoJobError: there is no such job.
            JobStateError: it has ended.
        """
        with self._changing(job, "job paused") as connection:
            if _move(connection, job, (QUEUED,), status=PAUSED):
                _tell(connection, job, "The job was paused")
            elif not _move(connection, job, (RUNNING,), _UNWANTED, wanted=PAUSED):
                found = _get(connection, job)
                if PAUSED not in (found["status"], found["wanted"]):
                    raise _refused(found, "paused")
            return _get(connection, job)

    def resume(self, job: str) -> Job:
        """Put a paused job back into the queue.

        Raises:
            NoJobError: there is no such job.
            JobStateError: it is not paused.
        """
        with self._changing(job, "job resumed") as connection:
            if _move(connection, job, (PAUSED,), status=QUEUED, wanted=None):
                _tell(connection, job, "The job was resumed")
            elif not _move(connection, job, (RUNNING,), jobs.c.wanted == PAUSED, wanted=None):
                raise _refused(_get(connection, job), "resumed")
            return _get(connection, job)

    def take(self) -> Job | None:
        """Take the job to work on: one whose worker died, else the oldest that waits.

        Only who holds the right to work on the assistant may call this; so a job that runs is
        nobody else's.
        """
        with self._database.begin() as connection:
            for status in (RUNNING, QUEUED):
                asked = select(jobs.c.id).where(jobs.c.status == status).order_by(jobs.c.number)
                for job in connection.execute(asked).scalars().all():
                    attempts = jobs.c.attempts + 1
                    if _move(connection, job, (status,), status=RUNNING, attempts=attempts):
                        again = status == RUNNING
                        _tell(
                            connection,
                            job,
                            "Its worker ended; the job goes on"
                            if again
                            else "Fine-tuning job started",
                        )
                        return _get(connection, job)
        return None

    def waiting(self) -> bool:
        """Tell whether a job is to be worked on."""
        asked = select(jobs.c.id).where(jobs.c.status.in_((RUNNING, QUEUED))).limit(1)
        with self._database.begin() as connection:
            return connection.execute(asked).first() is not None

    def step(self, job: str, *, step: int, steps: int, eta_s: float, loss: float) -> None:
        """Record a step; one that was recorded before its worker died is not told again."""
        with self._database.begin() as connection:
            fresh = connection.execute(
                update(jobs)
                .where(jobs.c.id == job, jobs.c.status == RUNNING, jobs.c.step < step)
                .values(step=step, steps=steps, eta=int(time.time() + eta_s), attempts=0)
            )
            if fresh.rowcount:
                data = {"step": step, "total_steps": steps, "train_loss": loss}
                told = f"Step {step}/{steps}: training loss={loss:.4f}"
                _tell(connection, job, told, type="metrics", data=data)

    def wanted(self, job: str) -> str | None:
        """Return what somebody wants of a running job: paused, cancelled, or nothing."""
        with self._database.begin() as connection:
            found = connection.execute(select(jobs.c.wanted).where(jobs.c.id == job)).scalar()
        return None if found is None else str(found)

    def put_aside(self, job: str) -> None:
        """Record that the worker paused a job; one that is to be cancelled meanwhile runs on."""
        with self._database.begin() as connection:
            paused = jobs.c.wanted == PAUSED
            if _move(connection, job, (RUNNING,), paused, status=PAUSED, wanted=None):
                _tell(connection, job, "The job was paused")

    def put_back(self, job: str) -> None:
        """Put a running job back into the queue: what it builds on is taken back."""
        with self._database.begin() as connection:
            if _move(connection, job, (RUNNING,), status=QUEUED):
                _tell(connection, job, "The version it builds on is taken back; it begins anew")

    def end(
        self,
        job: str,
        status: str,
        *,
        told: Sequence[str],
        results: tuple[str, bytes] | None = None,
        **fields: Any,
    ) -> bool:
        """Record the end of a running job; return whether it had not ended before.

        Args:
            job: its id.
            status: one of ``ENDED``.
            told: its last events.
            results: name and content of the file of its results.
            **fields: further columns: version, trained_tokens, error.
        """
        values = {"status": status, "finished_at": now(), "wanted": None, "eta": None, **fields}
        with self._database.begin() as connection:
            file = new_id("file") if results else None
            if not _move(connection, job, (RUNNING,), **values, result_file=file):
                return False
            if results:
                name, content = results
                row = {"id": file, "created_at": now(), "filename": name, "content": content}
                kind = {"purpose": "fine-tune-results", "bytes": len(content)}
                connection.execute(insert(files).values({**row, **kind}))
            for message in told:
                _tell(connection, job, message, level="error" if status == FAILED else "info")
            made = {"job": job, "version": fields.get("version")}
            audit.record(self._database.root, f"job {status}", once=True, **made)
        return True

    @contextmanager
    def _changing(self, job: str, what: str) -> Iterator[Connection]:
        """Open a transaction in which somebody changes a job; recorded if it succeeds."""
        with self._database.begin() as connection:
            yield connection
            audit.record(self._database.root, what, job=job)

    def knows(self, task: str, *, besides: str) -> bool:
        """Tell whether another job than ``besides`` teaches or taught a task of this name."""
        asked = select(jobs.c.id).where(jobs.c.task == task, jobs.c.id != besides)
        with self._database.begin() as connection:
            return connection.execute(asked).first() is not None


def enqueue(connection: Connection, **fields: Any) -> Job:
    """Put a job into the queue.

    Args:
        connection: within a transaction.
        **fields: columns of the table ``jobs``: task, model, training_file, seed, and so on.

    Raises:
        JobStateError: a job that has not ended teaches a task of this name.
    """
    row = {"id": new_id("ftjob"), "created_at": now(), "status": QUEUED, **fields}
    row["key"] = audit.acting_key()
    task = fields["task"]
    same = select(jobs.c.id).where(jobs.c.task == task, jobs.c.status.not_in(ENDED))
    if other := connection.execute(same).scalar():
        raise JobStateError(f"The task {task!r} is already taught by job {other}.")
    connection.execute(insert(jobs).values(row))
    _tell(connection, row["id"], f"Created fine-tuning job: {row['id']}")
    _tell(connection, row["id"], "Files validated, moving job to queued state")
    return _get(connection, row["id"])


def _get(connection: Connection, job: str) -> Job:
    row = connection.execute(select(jobs).where(jobs.c.id == job)).mappings().first()
    if row is None:
        raise NoJobError(f"Could not find fine tune: {job}")
    return dict(row)


def _move(
    connection: Connection,
    job: str,
    sources: Sequence[str],
    *conditions: ColumnElement[bool],
    **values: Any,
) -> bool:
    """Change a job if it is in one of these states; tell whether it was."""
    asked = update(jobs).where(jobs.c.id == job, jobs.c.status.in_(sources), *conditions)
    return bool(connection.execute(asked.values(**values)).rowcount)


def _tell(
    connection: Connection,
    job: str,
    message: str,
    *,
    level: str = "info",
    type: str = "message",
    data: Mapping[str, Any] | None = None,
) -> None:
    told = {"job": job, "created_at": now(), "level": level, "message": message}
    connection.execute(insert(events).values({**told, "type": type, "data": data}))


def _refused(job: Job, what: str) -> JobStateError:
    return JobStateError(f"Job {job['id']} is {job['status']} and cannot be {what}.")
