"""The database of what passes through an assistant in service: files, jobs, receipts, feedback.

It is traffic, not knowledge: whoever loses it loses no version. SQLite beside the store unless a
URL says otherwise.
"""

import secrets
import time
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
    delete,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, CreateTable, DDLElement

from lcia.errors import ConfigError, LciaError

NAME = "assistant.db"
TRIES, PAUSE_S = 3, 0.5
"""How often, and after which pause, the tables are prepared."""
BUSY_S = 30
"""How long one process waits for another's transaction; each takes milliseconds."""

SCHEMA = 2
"""Of the tables. 1, which was not written down: without the columns of ``_ADDED``."""

metadata = MetaData()
_Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts only INTEGER up by itself

about = Table(
    "about",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
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
    Column("key", Text),
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
    Column("key", Text),
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
    Column("key", Text),
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
_ADDED = {2: (jobs.c.key, receipts.c.key, feedback.c.key)}
"""Schema to the columns that came with it."""


class DatabaseError(LciaError, RuntimeError):
    """The database of jobs, receipts and feedback cannot be used."""


class DatabaseSchemaError(LciaError, RuntimeError):
    """The database was written by a later lcia."""


class _AddColumn(DDLElement):
    """``ALTER TABLE ... ADD COLUMN ...``, for every database."""

    inherit_cache = False

    def __init__(self, column: "Column[Any]") -> None:
        self.column = column


@compiles(_AddColumn)
def _add_column(element: _AddColumn, compiler: Any, **options: Any) -> str:
    table = compiler.preparer.format_table(element.column.table)
    return f"ALTER TABLE {table} ADD COLUMN {compiler.get_column_specification(element.column)}"


class Database:
    """A connection to the database; every method that uses it is one short transaction.

    Args:
        root: the assistant's folder.
        url: of another database, as SQLAlchemy writes it; None: SQLite in ``root``.

    Raises:
        ConfigError: the URL is none, or its driver is not installed.
        DatabaseError: the database cannot be reached, or is of a later lcia.
    """

    def __init__(self, root: Path, url: str | None = None) -> None:
        self.root = root
        self.url = url or f"sqlite:///{root.absolute() / NAME}"
        try:
            self._engine = _engine(self.url)
        except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
            raise ConfigError(
                f"--database: cannot be used: {error}. Expected a URL such as sqlite:////path/to.db"
                " or postgresql+psycopg://user@host/name, and its driver installed."
            ) from error
        self._prepare()

    def _prepare(self) -> None:
        """Make the tables, or bring those of an earlier lcia to this schema.

        Two processes may do so at once: then one fails in the middle, and finds all done.
        """
        for attempt in range(TRIES):
            try:
                with self.begin() as connection:
                    self._upgrade(connection)
                return
            except DatabaseError:
                if attempt == TRIES - 1:
                    raise
                time.sleep(PAUSE_S)

    def _upgrade(self, connection: Connection) -> None:
        looked = inspect(connection)
        there = set(looked.get_table_names())
        if about.name in there:
            asked = select(about.c.value).where(about.c.name == "schema")
            found = connection.execute(asked).scalar() or 1
        else:
            found = 1 if jobs.name in there else SCHEMA
        if found > SCHEMA:
            raise DatabaseSchemaError(
                f"{self.place}: has schema {found}; this lcia reads up to {SCHEMA}. Use the lcia "
                "that wrote it, or a later one."
            )
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
        for schema in range(found + 1, SCHEMA + 1):
            for column in (c for c in _ADDED[schema] if c.table.name in there):
                # SQLite commits each by itself, so a killed process may have added some.
                known = {one["name"] for one in looked.get_columns(column.table.name)}
                if column.name not in known:
                    connection.execute(_AddColumn(column))
        for table in metadata.sorted_tables:
            for index in table.indexes:
                connection.execute(CreateIndex(index, if_not_exists=True))
        if about.name not in there or found < SCHEMA:
            connection.execute(delete(about).where(about.c.name == "schema"))
            connection.execute(insert(about).values(name="schema", value=SCHEMA))

    @property
    def place(self) -> str:
        """The database's URL without its password."""
        return self._engine.url.render_as_string(hide_password=True)

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
            said = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise DatabaseError(f"{self.place}: cannot be used: {said}.") from error


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
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "secure_delete=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def now() -> int:
    """Return the time as the tables write it, in seconds since 1970."""
    return int(time.time())
