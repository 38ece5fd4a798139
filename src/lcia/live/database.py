"""The database of what passes through an assistant in service: files, jobs, receipts, feedback.

It is traffic, not knowledge: whoever loses it loses no version. SQLite beside the store unless a
URL says otherwise.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from lcia.errors import ConfigError, LciaError

NAME = "assistant.db"
BUSY_S = 30
"""How long one process waits for another's transaction; each takes milliseconds."""

metadata = MetaData()
_Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts only INTEGER up by itself

files = Table(
    "files",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("content", LargeBinary, nullable=False),
)
jobs = Table(
    "jobs",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("status", Text, nullable=False),
    Column("wanted", Text),
    Column("task", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("training_file", Text, nullable=False),
    Column("validation_file", Text),
    Column("seed", BigInteger, nullable=False),
    Column("hyperparameters", JSON, nullable=False),
    Column("metadata", JSON),
    Column("settings", JSON, nullable=False),
    Column("step", BigInteger, nullable=False, default=0),
    Column("steps", BigInteger),
    Column("eta", BigInteger),
    Column("attempts", Integer, nullable=False, default=0),
    Column("trained_tokens", BigInteger),
    Column("version", Integer),
    Column("error", JSON),
    Column("result_file", Text),
    Index("jobs_by_status", "status"),
)
events = Table(
    "events",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("job", Text, nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("level", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("data", JSON),
)
receipts = Table(
    "receipts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("created_at", BigInteger, nullable=False, index=True),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("group", Text),
    Column("adapter", Text),
    Column("reason", Text, nullable=False),
    Column("similarity", Float),
    Column("sampling", JSON, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("answer_tokens", Integer, nullable=False),
    Column("finish_reason", Text),
    Column("prompt", JSON),
    Column("answer", Text),
)
feedback = Table(
    "feedback",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("created_at", BigInteger, nullable=False),
    Column("receipt", Text, nullable=False, index=True),
    Column("state", Text, nullable=False),
    Column("rating", Integer),
    Column("correction", Text),
    Column("comment", Text),
    Column("prompt", JSON),
    Column("job", Text),
)
canaries = Table(
    "canaries",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("created_at", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("before", Integer, nullable=False),
    Column("share", Float, nullable=False),
    Column("answers", Integer, nullable=False),
    Column("looks", Integer, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("ended_at", BigInteger),
    Column("why", Text),
    Column("counts", JSON),
)
canary_answers = Table(
    "canary_answers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("canary", _Number, nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("failed", Boolean, nullable=False),
    Column("refused", Boolean, nullable=False),
)


class DatabaseError(LciaError, RuntimeError):
    """The database of jobs, receipts and feedback cannot be used."""


class Database:
    """A connection to the database; every method that uses it is one short transaction.

    Args:
        root: the assistant's folder.
        url: of another database, as SQLAlchemy writes it; None: SQLite in ``root``.

    Raises:
        ConfigError: the URL is none, or its driver is not installed.
        DatabaseError: the database cannot be reached.
    """

    def __init__(self, root: Path, url: str | None = None) -> None:
        self.url = url or f"sqlite:///{root.absolute() / NAME}"
        try:
            self._engine = _engine(self.url)
        except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
            raise ConfigError(
                f"--database: cannot be used: {error}. Expected a URL such as sqlite:////path/to.db"
                " or postgresql+psycopg://user@host/name, and its driver installed."
            ) from error
        with self.begin() as connection:
            for table in metadata.sorted_tables:  # two processes may make them at once
                connection.execute(CreateTable(table, if_not_exists=True))
                for index in table.indexes:
                    connection.execute(CreateIndex(index, if_not_exists=True))

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Open a transaction: committed at the end, rolled back by an error.

        Raises:
            DatabaseError: the database cannot be used.
        """
        with self._told(), self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            place = self._engine.url.render_as_string(hide_password=True)
            said = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise DatabaseError(f"{place}: cannot be used: {said}.") from error


def new_id(kind: str) -> str:
    """Return an id that nobody guesses, such as ``ftjob-5f0c...``."""
    return f"{kind}-{secrets.token_hex(12)}"


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine
