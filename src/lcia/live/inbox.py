"""Receipts of answers, and the inbox of what people said about them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, null, select, update

from lcia.errors import DataError
from lcia.files import json_bytes
from lcia.live.data_files import DataFiles
from lcia.live.database import Database, feedback, now, receipts
from lcia.live.jobs import Job, enqueue
from lcia.store import audit

NEW, ACCEPTED, REJECTED, TAUGHT = "new", "accepted", "rejected", "taught"
STATES = (NEW, ACCEPTED, REJECTED, TAUGHT)

Turns = Sequence[Mapping[str, str]]
"""A conversation: role and content of each turn."""

Entry = Mapping[str, Any]
"""What somebody said about an answer, with version and group of its receipt."""


class NoReceiptError(DataError):
    """There is no answer of that id."""


class NoFeedbackError(DataError):
    """There is no feedback of that number, or not in the state that is needed."""


class Receipts:
    """What is known of each answer that was given.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep receipts; their fields are the columns of the table."""
        created_at = now()
        with self._database.begin() as connection:
            connection.execute(
                insert(receipts), [{**row, "created_at": created_at} for row in rows]
            )

    def drop_texts(self, *, older_than_s: float) -> None:
        """Remove prompts and answers of old receipts, and prompts of feedback not yet decided on.

        What was accepted is on its way to be taught; ``lcia forget`` removes that, too.
        """
        before = int(time.time() - older_than_s)
        old = feedback.c.state.in_([NEW, REJECTED]) & (feedback.c.created_at < before)
        with self._database.begin() as connection:
            gone = {"prompt": null(), "answer": null()}
            connection.execute(
                update(receipts).where(receipts.c.created_at < before).values(**gone)
            )
            connection.execute(update(feedback).where(old).values(prompt=null(), correction=null()))

    def get(self, answer: str) -> dict[str, Any]:
        """Return the receipt of an answer.

        Raises:
            NoReceiptError: there is none of that id.
        """
        with self._database.begin() as connection:
            return _receipt(connection, answer)


class Inbox:
    """What people said about answers, and what became of it.

    Args:
        database: where it is.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(
        self,
        answer: str,
        *,
        rating: int | None = None,
        correction: str | None = None,
        comment: str | None = None,
        prompt: Turns | None = None,
    ) -> dict[str, Any]:
        """Keep what somebody said about an answer; a second word on it is a second entry.

        Args:
            answer: its id.
            rating: 1 for good, -1 for bad.
            correction: what should have been answered.
            comment: anything else.
            prompt: the conversation that was answered, where its receipt does not hold it.

        Raises:
            NoReceiptError: there is no such answer.
            DataError: a correction without the prompt it belongs to.
        """
        with self.database.begin() as connection:
            receipt = _receipt(connection, answer)
            turns = receipt["prompt"] or prompt
            if correction is not None and turns is None:
                raise DataError(
                    "The prompt of this answer was not kept, so a correction teaches nothing. "
                    "Send it as 'prompt', or start the server with --keep-prompts."
                )
            row = {
                "created_at": now(),
                "receipt": answer,
                "state": NEW,
                "rating": rating,
                "correction": correction,
                "comment": comment,
                "prompt": turns,
                "key": audit.acting_key(),
            }
            number = connection.execute(insert(feedback).values(row)).inserted_primary_key
            assert number is not None
            return _entry(connection, int(number[0]))

    def get(self, number: int) -> dict[str, Any]:
        """Return one entry with the receipt of its answer.

        Raises:
            NoFeedbackError: there is none of that number.
        """
        with self.database.begin() as connection:
            return _entry(connection, number)

    def listed(self, *, state: str | None = None) -> list[dict[str, Any]]:
        """Return the entries, the oldest first, each with version and group of its answer."""
        asked = _entries().order_by(feedback.c.number)
        if state is not None:
            asked = asked.where(feedback.c.state == state)
        with self.database.begin() as connection:
            return [dict(row) for row in connection.execute(asked).mappings()]

    def decide(
        self, numbers: Sequence[int] | None, state: str, *, besides: Iterable[int] = ()
    ) -> int:
        """Accept or reject entries; return how many.

        Args:
            numbers: which; None: all that are new and, to be accepted, have a correction.
            state: ``accepted`` or ``rejected``.
            besides: where ``numbers`` is None: those that stay as they are all the same.

        Raises:
            NoFeedbackError: an entry is not there, was taught, or has no correction to accept.
        """
        open_ = feedback.c.state.in_([NEW, ACCEPTED, REJECTED])
        where = open_ & feedback.c.number.in_(numbers) if numbers else feedback.c.state == NEW
        if state == ACCEPTED:
            where &= feedback.c.correction.is_not(None)
        if besides and not numbers:
            where &= feedback.c.number.not_in(list(besides))
        with self.database.begin() as connection:
            asked = update(feedback).where(where).values(state=state)
            done = int(connection.execute(asked).rowcount)
            if numbers and done != len(set(numbers)):
                for number in numbers:
                    _check_open(_entry(connection, number), state)
        return done

    def edit(self, number: int, correction: str, *, prompt: str | None = None) -> None:
        """Write the correction of an entry anew; its state stays.

        Args:
            number: which.
            correction: what should have been answered.
            prompt: what was asked, where the entry does not hold it.

        Raises:
            NoFeedbackError: there is none of that number, or it was taught.
            DataError: a correction without text, or without the prompt it belongs to.
        """
        if not correction.strip():
            raise DataError("--correction: is empty; expected what should have been answered.")
        with self.database.begin() as connection:
            entry = _entry(connection, number)
            turns = entry["prompt"] or (prompt and [{"role": "user", "content": prompt}])
            if not turns:
                raise DataError(f"Feedback {number} does not hold its prompt. Give it: --prompt.")
            here = (feedback.c.number == number) & (feedback.c.state != TAUGHT)
            asked = update(feedback).where(here).values(correction=correction, prompt=turns)
            if not connection.execute(asked).rowcount:
                raise _taught(_entry(connection, number))

    def teach(
        self, batches: Sequence[tuple[Mapping[str, Any], Sequence[Entry], Sequence[Entry]]]
    ) -> list[Job]:
        """Queue jobs that learn corrections, all of them or none.

        The file of a job is also what the task is scored on: the score says how many are now
        answered as corrected. An entry is taught once: what a process that was killed in here
        leaves is an unused file.

        Args:
            batches: the columns of a job, as ``order`` returns them; the entries it learns; and
                all that are then taught.

        Raises:
            NoFeedbackError: the inbox changed meanwhile.
            DataError: a correction cannot be learned from.
            JobStateError: a job that has not ended teaches a task of this name.
        """
        files, made = DataFiles(self.database), []
        ids = [
            files.add(f"{job['task']}.jsonl", _lines(learned))["id"] for job, learned, _ in batches
        ]
        with self.database.begin() as connection:
            for (job, _, taught), file in zip(batches, ids, strict=True):
                made.append(enqueue(connection, **job, training_file=file, validation_file=file))
                for entry in taught:
                    same = feedback.c.correction == entry["correction"]
                    still = (feedback.c.number == entry["number"]) & (feedback.c.state == ACCEPTED)
                    values = {"state": TAUGHT, "job": made[-1]["id"]}
                    asked = update(feedback).where(still & same).values(values)
                    if not connection.execute(asked).rowcount:
                        raise NoFeedbackError("The inbox changed meanwhile. Try again.")
        for job in made:
            audit.record(self.database.root, "job queued", job=job["id"], task=job["task"])
        return made

    def counts(self) -> dict[str, int]:
        """Return how many entries are in each state."""
        asked = select(feedback.c.state, func.count()).group_by(feedback.c.state)
        with self.database.begin() as connection:
            found = {row[0]: int(row[1]) for row in connection.execute(asked)}
        return {state: found.get(state, 0) for state in STATES}


def _lines(entries: Sequence[Entry]) -> bytes:
    return b"".join(json_bytes(_sample(entry)) + b"\n" for entry in entries)


def _sample(entry: Entry) -> dict[str, Any]:
    """Return a correction as a training sample; its id tells where it comes from."""
    answer = {"role": "assistant", "content": entry["correction"]}
    return {
        "id": f"feedback-{entry['number']}:{entry['receipt']}",
        "messages": [*entry["prompt"], answer],
    }


def _entries() -> Any:
    told = [receipts.c[name] for name in ("version", "group", "similarity", "reason", "answer")]
    joined = feedback.outerjoin(receipts, receipts.c.id == feedback.c.receipt)
    return select(*feedback.c, *told).select_from(joined)


def _entry(connection: Connection, number: int) -> dict[str, Any]:
    row = connection.execute(_entries().where(feedback.c.number == number)).mappings().first()
    if row is None:
        raise NoFeedbackError(f"There is no feedback {number}.")
    return dict(row)


def _receipt(connection: Connection, answer: str) -> dict[str, Any]:
    row = connection.execute(select(receipts).where(receipts.c.id == answer)).mappings().first()
    if row is None:
        raise NoReceiptError(f"There is no receipt of {answer[:100]!r}.")
    return dict(row)


def _check_open(entry: Mapping[str, Any], state: str) -> None:
    if entry["state"] == TAUGHT:
        raise _taught(entry)
    if state == ACCEPTED and entry["correction"] is None:
        raise NoFeedbackError(f"Feedback {entry['number']} has no correction to learn from.")


def _taught(entry: Mapping[str, Any]) -> NoFeedbackError:
    return NoFeedbackError(f"Feedback {entry['number']} was taught by job {entry['job']}.")
