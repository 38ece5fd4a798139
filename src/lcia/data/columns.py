"""Fields under other names: ``prompt=question`` reads the column ``question`` as the prompt."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lcia.data.readers.base import Problem, Reader, Record
from lcia.data.readers.meaning import SWITCHES
from lcia.errors import ConfigError
from lcia.registry import READERS, nearest

DISPLACED = "{name} (displaced by map)"


def check_columns(columns: Mapping[str, str | None]) -> None:
    """Check that a reader knows the fields that columns are mapped to.

    Raises:
        ConfigError: none does.
    """
    readers: list[Reader] = [READERS.get(name)() for name in READERS.names()]
    if any(reader.fields is None for reader in readers if type(reader).__module__[:5] != "lcia."):
        return  # a plug-in that looks after its fields itself
    known = {"id", *SWITCHES}.union(*(reader.fields or () for reader in readers))
    for target, source in columns.items():
        if source and target not in known:
            raise ConfigError(f"map: no format has a field '{target}'. {nearest(target, known)}")


def mapped(
    values: Iterable[Record | Problem], columns: Mapping[str, str | None]
) -> list[Record | Problem]:
    """Return records whose fields have the names that readers know.

    Args:
        values: of a file.
        columns: field to the column that holds it, ``a.b`` for ``b`` inside ``a``; to nothing for a
            field to leave out. Whole numbers become texts.

    Raises:
        ConfigError: no record has such a column.
    """
    values = list(values)
    rows = [value.value for value in values if isinstance(value, Record)]
    rows = [row for row in rows if isinstance(row, Mapping)]
    for target, source in columns.items():
        name = source or target
        if rows and not any(_find(row, name)[0] for row in rows):
            keys = dict.fromkeys(key for row in rows[:100] for key in row)
            raise ConfigError(
                f"map: {target}={source or ''}: no record has '{name}'. {nearest(name, keys)}"
            )
    return [
        replace(value, value=_renamed(value.value, columns))
        if isinstance(value, Record) and isinstance(value.value, Mapping)
        else value
        for value in values
    ]


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str | None]) -> dict[str, Any]:
    taken = {target: _find(row, source) for target, source in columns.items() if source}
    used = {source for source in columns.values() if source}
    left_out = {target for target, source in columns.items() if not source}
    rest = {key: value for key, value in row.items() if key not in used | left_out}
    for key in [key for key in rest if key in taken]:
        rest[DISPLACED.format(name=key)] = rest.pop(key)
    return {**rest, **{target: _text(v, target) for target, (there, v) in taken.items() if there}}


def _find(row: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """Return whether a row has a column, and what it holds."""
    if name in row:
        return True, row[name]
    head, dot, tail = name.partition(".")
    inner = row.get(head)
    return _find(inner, tail) if dot and isinstance(inner, Mapping) else (False, None)


def _text(value: Any, target: str) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole and target not in SWITCHES else value
