"""What a reader is: one way to write samples into a file."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lcia.data.sample import Sample


class RecordError(ValueError):
    """A record cannot be used; the text says what was found, expected and what to do."""


def found(value: Any) -> str:
    """Name a JSON value in a message: short scalars as they are, the rest by kind."""
    if value is None:
        return "missing or null"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def says_nothing(value: Any) -> bool:
    """Whether a field might as well be absent: null, blank or empty, also written as a text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or value in ([], {})


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A record that cannot be used.

    Attributes:
        where: what follows the path in a message, as in ``Record``.
        text: what was found, what was expected, what to do.
    """

    where: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One JSON value of a file.

    Attributes:
        where: what follows the path in a message: ``:17`` (line) or ``: [16]`` (index).
        number: the line, or the index counted from 1; the id of a record that names none.
        value: the parsed JSON; anything but an object is a bad record.
    """

    where: str
    number: int
    value: Any

    @property
    def id(self) -> str:
        """The record's own ``id``, else its number.

        Raises:
            RecordError: the id is neither a text nor a whole number.
        """
        found = self.value.get("id")
        if found is None:
            return str(self.number)
        if isinstance(found, bool) or not isinstance(found, str | int) or not str(found).strip():
            raise RecordError(f"id is {found!r}; expected a text or a whole number.")
        return str(found)


class Reader(ABC):
    """Turns the records of one format into samples.

    Attributes:
        expected: the shape of a record, in one line; shown when no format fits a file.
        fields: the fields of a record that it takes. Others that change what a model must say are
            refused, the rest is counted; None: the reader looks after that itself.
        repeats_ids: whether files of the format give several records one id; it is then made
            unique by the record's number.
        turns: which answers of a conversation are learned, ``all`` or ``last``.
        note: what one should know of how the format is read; told once per file.
    """

    expected: ClassVar[str]
    fields: ClassVar[frozenset[str] | None] = None
    repeats_ids: ClassVar[bool] = False
    note: ClassVar[str | None] = None
    turns: str = "last"

    def __init__(self, *, roles: Mapping[str, str] | None = None) -> None:
        """Keep the roles to rename.

        Args:
            roles: role in the file to ``system``, ``user`` or ``assistant``.
        """
        self.roles = dict(roles or {})

    def open(self, path: Path) -> None:
        """Read what stands beside a file, if the format has such; called before its records.

        Args:
            path: the file, or the folder or hub id that the records are of.

        Raises:
            DataError: it is missing or cannot be used.
        """
        return

    @abstractmethod
    def recognises(self, record: Mapping[str, Any]) -> bool:
        """Whether a JSON object has the keys of this format."""

    def expand(self, record: Record) -> Iterator[Record]:
        """Yield the records that one JSON value of the file holds: itself, unless overridden.

        Raises:
            RecordError: the value cannot be taken apart.
        """
        yield record

    @abstractmethod
    def sample(self, record: Record) -> Sample:
        """Return the sample of a record whose value is an object.

        Raises:
            RecordError: a field is missing, empty or of the wrong type.
        """
