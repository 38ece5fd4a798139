"""Uploaded files: kept in the database, their samples checked when they arrive."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, select

from lcia.data.reading import read_all
from lcia.errors import DataError
from lcia.live.database import Database, files, jobs, new_id, now

FINE_TUNE, RESULTS = "fine-tune", "fine-tune-results"
SHOWN = 20
"""Bad records that a message names."""

_TOLD = (files.c.id, files.c.bytes, files.c.created_at, files.c.filename, files.c.purpose)


class NoFileError(DataError):
    """There is no file of that id."""


class FileInUseError(DataError):
    """A job that has not ended needs the file."""


class DataFiles:
    """The files of one assistant.

    Args:
        database: where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, filename: str, content: bytes, *, purpose: str = FINE_TUNE) -> dict[str, Any]:
        """Keep a file; what is to be learned is checked first.

        Raises:
            DataError: a record cannot be used, in the words of ``lcia data check``.
        """
        if purpose == FINE_TUNE:
            check(filename, content)
        row = {
            "id": new_id("file"),
            "created_at": now(),
            "filename": _plain(filename),
            "purpose": purpose,
            "bytes": len(content),
            "content": content,
        }
        with self._database.begin() as connection:
            connection.execute(insert(files).values(row))
        return _told(row)

    def get(self, file: str) -> dict[str, Any]:
        """Return what is told of a file, as OpenAI writes it.

        Raises:
            NoFileError: there is none of that id.
        """
        with self._database.begin() as connection:
            row = connection.execute(select(*_TOLD).where(files.c.id == file)).mappings().first()
        if row is None:
            raise NoFileError(f"No such File object: {file}")
        return _told(dict(row))

    def content(self, file: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            NoFileError: there is none of that id.
        """
        with self._database.begin() as connection:
            found = connection.execute(select(files.c.content).where(files.c.id == file)).scalar()
        if found is None:
            raise NoFileError(f"No such File object: {file}")
        return bytes(found)

    def listed(
        self, *, purpose: str | None = None, after: str | None = None, limit: int, newest: bool
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return files from the one after ``after``, and whether there are more.

        Args:
            purpose: only of this one.
            after: id of the last one of the page before.
            limit: at most so many.
            newest: whether the newest come first.

        Raises:
            NoFileError: there is no file ``after``.
        """
        number = files.c.number
        asked = select(*_TOLD).order_by(number.desc() if newest else number).limit(limit + 1)
        if purpose is not None:
            asked = asked.where(files.c.purpose == purpose)
        with self._database.begin() as connection:
            if after is not None:
                known = connection.execute(select(number).where(files.c.id == after)).scalar()
                if known is None:
                    raise NoFileError(f"No such File object: {after}")
                asked = asked.where(number < known if newest else number > known)
            rows = [_told(dict(row)) for row in connection.execute(asked).mappings()]
        return rows[:limit], len(rows) > limit

    def delete(self, file: str) -> None:
        """Remove a file.

        Raises:
            NoFileError: there is none of that id.
            FileInUseError: a job that has not ended needs it.
        """
        needs = (jobs.c.training_file == file) | (jobs.c.validation_file == file)
        with self._database.begin() as connection:
            using = connection.execute(
                select(jobs.c.id).where(needs, jobs.c.finished_at.is_(None))
            ).scalar()
            if using is not None:
                raise FileInUseError(f"{file}: job {using} needs it. Cancel the job first.")
            if not connection.execute(delete(files).where(files.c.id == file)).rowcount:
                raise NoFileError(f"No such File object: {file}")

    @contextmanager
    def on_disk(self, file: str) -> Iterator[Path]:
        """Write a file to a folder that is gone afterwards, under its own name.

        Raises:
            NoFileError: there is none of that id.
        """
        with written(self.get(file)["filename"], self.content(file)) as path:
            yield path


@contextmanager
def written(filename: str, content: bytes) -> Iterator[Path]:
    """Write content under a name to a folder that is gone afterwards; errors tell the name alone.

    Raises:
        DataError: as it was raised within, without the folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _plain(filename)
        path.write_bytes(content)
        try:
            yield path
        except DataError as error:
            raise type(error)(str(error).replace(f"{folder}/", "")) from error


def check(filename: str, content: bytes) -> None:
    """Check that every record of a file can be learned from.

    Raises:
        DataError: one cannot, in the words of ``lcia data check``.
    """
    with written(filename, content) as path:
        reading = read_all(path)
        bad = reading.messages()
        if bad:
            more = [f"... and {len(bad) - SHOWN} more."] if len(bad) > SHOWN else []
            raise DataError("\n".join([*bad[:SHOWN], *more]))
        if any(sample.images for sample in reading.samples):
            raise DataError(
                f"{path}: has images, which do not come with an uploaded file. Learn it where "
                "the images are: lcia learn STORE FILE --name NAME."
            )


def _told(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: row[name] for name in ("id", "bytes", "created_at", "filename", "purpose")}
    return {**kept, "object": "file", "status": "processed", "expires_at": None}


def _plain(filename: str) -> str:
    """Return the last part of a name: what a client sends names no place on this machine."""
    last = filename.replace("\\", "/").rpartition("/")[2].replace("\0", "")
    return last[-200:] if last not in ("", ".", "..") else "file.jsonl"
