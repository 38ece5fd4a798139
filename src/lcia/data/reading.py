"""Read a file of samples: every bad record is reported, none is dropped."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Literal

from lcia.data.images import below, inspect
from lcia.data.readers.base import Problem, Reader, Record, RecordError, found
from lcia.data.readers.fields import ROLES, SWITCHES, TURN, refuse, unread
from lcia.data.sample import Sample
from lcia.data.tables import check_columns, load_values, mapped
from lcia.errors import ConfigError, DataError
from lcia.registry import READERS

logger = logging.getLogger(__name__)

SHOWN = 20
LOOKED_AT = 100
KEYS_SHOWN = 8
Turns = Literal["all", "last"]
"""Which answers of a conversation are learned."""
TURNS = (*TURN, "from", "value", "type", "text", "path")
"""Fields of a turn in any format, and of a part of its content."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All that a file holds.

    Attributes:
        path: the file.
        format: the name of the reader.
        samples: the usable records, in the order of the file.
        problems: the others, in the order of the file.
        unread: field to the number of records in which it says something that nobody reads.
        note: what one should know of how the format is read; None: nothing.
    """

    path: Path
    format: str
    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...]
    unread: Mapping[str, int]
    note: str | None = None

    def messages(self) -> list[str]:
        """Return one line per problem, with the path and the place in it."""
        return [f"{self.path}{problem.where}: {problem.text}" for problem in self.problems]


def read(path: str | Path, **options: Any) -> list[Sample]:
    """Return the samples of a file, in its order.

    Args:
        path: a file, a folder of data files, or a hub id.
        **options: those of ``read_all``.

    Returns:
        At least one sample.

    Raises:
        DataError: the file cannot be read, no reader fits, or it has bad records; all of them are
            counted and the first 20 shown.
        ConfigError: see ``read_all``.
    """
    reading = read_all(path, **options)
    if reading.note:
        logger.warning("%s: %s", path, reading.note)
    if reading.unread:
        listed = ", ".join(f"{name} ({count})" for name, count in reading.unread.items())
        logger.warning("%s: fields that lcia does not read, with their records: %s", path, listed)
    lines = reading.messages()
    if len(lines) == 1:
        raise DataError(lines[0])
    if lines:
        total = len(lines) + len(reading.samples)
        shown = f"the first {SHOWN}" if len(lines) > SHOWN else "all"
        head = f"{path}: {len(lines)} of {total} records cannot be used; {shown}:"
        raise DataError("\n".join((head, *lines[:SHOWN])))
    return list(reading.samples)


def read_all(
    path: str | Path,
    *,
    format: str | None = None,
    roles: Mapping[str, str] | None = None,
    images: Path | None = None,
    split: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    turns: Turns | None = None,
) -> Reading:
    """Return the samples and the bad records of a file.

    Args:
        path: JSON, JSON Lines, CSV, TSV, Parquet or Arrow, packed or not; a folder of data files;
            or a hub id, ``user/name`` or ``user/name:subset``.
        format: the name of a reader; recognised from the content when None.
        roles: role in the file to ``system``, ``user`` or ``assistant``.
        images: folder the paths of images start from; None: that of the file.
        split: which part of a folder or of a hub's data set.
        columns: field to the column that holds it, see ``lcia.data.tables.mapped``.
        turns: which answers of a conversation are learned; None: as the format does.

    Raises:
        DataError: the file or what belongs beside it cannot be read, or no reader fits.
        ConfigError: no such format, split or column, or a role is mapped to something else.
        MissingDependencyError: an optional package is needed.
    """
    path = Path(path)
    for role, target in (roles or {}).items():
        if target not in ROLES:
            raise ConfigError(f"roles: '{role}' is mapped to '{target}'; expected {ROLES}.")
    if columns:
        check_columns(columns)
    values = load_values(path, split=split)
    if columns:
        values = mapped(values, columns)
    if not values:
        raise DataError(f"{path}: has no records; expected at least one.")
    format = format or _recognise(path, values)
    reader: Reader = READERS.get(format)(roles=roles)
    if turns is not None:
        reader.turns = turns
    reader.open(path)
    located = below(images or path.parent)
    unread_fields: Counter[str] = Counter()
    results = [
        located(result) if isinstance(result, Sample) else result
        for result in _samples(values, reader, unread_fields)
    ]
    return Reading(
        path=path,
        format=format,
        samples=tuple(result for result in results if isinstance(result, Sample)),
        problems=tuple(result for result in results if isinstance(result, Problem)),
        unread=dict(sorted(unread_fields.items())),
        note=reader.note,
    )


def _samples(
    values: list[Record | Problem], reader: Reader, unread_fields: Counter[str]
) -> Iterator[Sample | Problem]:
    seen: dict[str, str] = {}
    named = _ids_named(values)
    for record in _expanded(values, reader, unread_fields):
        if isinstance(record, Problem):
            yield record
            continue
        try:
            sample = _sample(record, reader, unread_fields)
            again = sample.id in seen and reader.repeats_ids
            if again or (sample.id in named and _names_no_id(record.value)):
                sample = replace(sample, id=f"{sample.id}@{record.number}")
            if sample.id in seen:
                first = seen[sample.id].lstrip(": ")
                raise RecordError(f"id '{sample.id}' is also that of {first}; expected another.")
        except RecordError as error:
            yield Problem(where=record.where, text=str(error))
        else:
            seen[sample.id] = record.where
            yield sample


def _ids_named(values: list[Record | Problem]) -> set[str]:
    """Return the ids in a file of which only some records have one: no number may take them."""
    rows = [v.value for v in values if isinstance(v, Record) and isinstance(v.value, Mapping)]
    ids = {str(row["id"]) for row in rows if not _names_no_id(row)}
    return ids if any(map(_names_no_id, rows)) else set()


def _names_no_id(row: Mapping[str, Any]) -> bool:
    return row.get("id") is None


def _expanded(
    values: list[Record | Problem], reader: Reader, unread_fields: Counter[str]
) -> Iterator[Record | Problem]:
    for value in values:
        if isinstance(value, Problem):
            yield value
            continue
        try:
            made = list(reader.expand(value))
        except RecordError as error:
            yield Problem(where=value.where, text=str(error))
        else:
            unread_fields.update(_unanswered(value.value, made))
            yield from made


def _unanswered(value: Any, made: Sequence[Record]) -> Iterator[str]:
    """Yield the field of a conversation that goes on after its last answer: a question is left."""
    for field in ("conversations", "messages") if isinstance(value, Mapping) else ():
        said = value.get(field)
        if not isinstance(said, list) or not isinstance(last := said[-1] if said else None, dict):
            continue
        cut = (record.value.get(field) for record in made if isinstance(record.value, Mapping))
        kept = max((len(turns) for turns in cut if isinstance(turns, list)), default=len(said))
        if kept < len(said) and not SWITCHES & last.keys():  # one that is not to be learned
            yield f"{field}[-1], which has no answer"


def _sample(record: Record, reader: Reader, unread_fields: Counter[str]) -> Sample:
    value = record.value
    if not isinstance(value, Mapping):
        raise RecordError(f"found {found(value)}; expected {reader.expected}.")
    if reader.fields is None:
        return reader.sample(record)
    refuse(value, used=reader.fields)
    sample = reader.sample(record)
    names = dict.fromkeys(unread(value, used=reader.fields))
    for field in reader.fields & value.keys():
        turns = value[field] if isinstance(value[field], list) else []
        for turn in turns:
            if isinstance(turn, Mapping):
                names |= dict.fromkeys(f"{field}[].{key}" for key in unread(turn, used=TURNS))
    unread_fields.update(names.keys())
    return sample


def _recognise(path: Path, values: list[Record | Problem]) -> str:
    """Return the format that most of the first records have."""
    objects = [value.value for value in values if isinstance(value, Record)]
    objects = [value for value in islice(objects, LOOKED_AT) if isinstance(value, Mapping)]
    readers: dict[str, Reader] = {name: READERS.get(name)() for name in READERS.names()}
    votes = Counter(
        name for value in objects for name, reader in readers.items() if reader.recognises(value)
    )
    if votes:
        return max(readers, key=lambda name: votes[name])
    first = next((value for value in values if isinstance(value, Problem)), None)
    if not objects and first is not None:
        raise DataError(f"{path}{first.where}: {first.text}")
    keys = sorted({str(key) for value in objects for key in value})
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    has = (
        f"records with the keys {', '.join(keys[:KEYS_SHOWN])}{more}" if keys else "no JSON object"
    )
    expected = "; ".join(f"{name}: {reader.expected}" for name, reader in readers.items())
    raise DataError(
        f"{path}: found {has}, which fits no format; expected one of {expected}. "
        "Name the columns with --map, for example --map prompt=QUESTION,answer=REPLY."
    )


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The spread of the lengths of texts, in characters; all 0 for no text."""

    shortest: int = 0
    median: float = 0
    longest: int = 0

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Lengths":
        """Measure the texts."""
        lengths = [len(text) for text in texts]
        if not lengths:
            return cls()
        return cls(shortest=min(lengths), median=median(lengths), longest=max(lengths))


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The outcome of ``check``.

    Attributes:
        path: the file, as given.
        format: the reader that fits it.
        samples: the number of usable records.
        bad: one line per other record, and per image that cannot be used: where, what was
            found, what was expected.
        turns: the greatest number of turns before an answer.
        prompt_chars: the lengths of the last user turns.
        answer_chars: the lengths of the answers trained on.
        answers: the number of acceptable answers over all samples.
        instructions: the number of different instructions that the data name.
        duplicate_prompts: samples whose whole conversation an earlier sample has.
        conflicting_prompts: those of them whose first answer differs from the earlier one's.
        unread: field to the number of records in which it says something that nobody reads.
        note: what one should know of how the format is read; None: nothing.
    """

    path: str
    format: str
    samples: int
    bad: tuple[str, ...]
    turns: int
    prompt_chars: Lengths
    answer_chars: Lengths
    answers: int
    instructions: int
    duplicate_prompts: int
    conflicting_prompts: int
    unread: Mapping[str, int]
    note: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every record of the file can be used."""
        return not self.bad


def check(path: str | Path, **options: Any) -> DataReport:
    """Read a file and describe it; bad records, empty prompts among them, do not raise.

    Args:
        path: a file, a folder of data files, or a hub id.
        **options: those of ``read_all``.

    Raises:
        DataError: the file cannot be read, or no reader fits.
        ConfigError: see ``read_all``.
    """
    reading = read_all(path, **options)
    samples = reading.samples
    images: dict[str, str] = {}
    for sample in samples:
        for image in sample.images:
            images.setdefault(image.path, sample.id)
    _, damaged = inspect(images)
    prompts = Counter(sample.messages for sample in samples)
    answered = Counter({(sample.messages, sample.answers[0]): 1 for sample in samples})
    return DataReport(
        path=str(path),
        format=reading.format,
        samples=len(samples),
        bad=(
            *reading.messages(),
            *(f"{path}: {why} (sample {images[path]})." for path, why in damaged.items()),
        ),
        turns=max((len(sample.messages) for sample in samples), default=0),
        prompt_chars=Lengths.of(sample.prompt for sample in samples),
        answer_chars=Lengths.of(sample.answers[0] for sample in samples),
        answers=sum(len(sample.answers) for sample in samples),
        instructions=len({sample.instruction for sample in samples} - {None}),
        duplicate_prompts=len(samples) - len(prompts),
        conflicting_prompts=len(answered) - len(prompts),
        unread=reading.unread,
        note=reading.note,
    )
