"""From bytes to JSON values, each with its place in the file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lcia.data.readers.base import Problem, Record, RecordError
from lcia.data.readers.kind import foreign
from lcia.errors import DataError
from lcia.files import content_of

BOM = b"\xef\xbb\xbf"


def load_bytes(path: Path) -> bytes:
    """Return the file's content without a UTF-8 byte order mark.

    Raises:
        DataError: no file, a directory, unreadable, empty, or something else than JSON: the
            message names it.
    """
    try:
        content = content_of(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory; expected a file.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    content = content.removeprefix(BOM)
    if (other := foreign(content)) is not None:
        raise DataError(f"{path}: {other}")
    if b"\r" in content and b"\n" not in content:
        content = content.replace(b"\r", b"\n")  # lines of an old Mac
    if not content.strip():
        raise DataError(f"{path}: is empty; expected at least one record.")
    return content


class BrokenJSONError(RecordError):
    """Bytes that are no JSON; ``line`` counts from 1 inside them."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def parse(content: bytes) -> Any:
    """Return the JSON value of ``content``.

    Raises:
        BrokenJSONError: not UTF-8 or not JSON.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except _RefusedError as error:
        line, problem = 1, str(error)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        problem = f"byte {column} is not UTF-8; expected UTF-8. Save the file as UTF-8."
    except json.JSONDecodeError as error:
        line = error.lineno
        problem = f"not valid JSON: {error.msg} at column {error.colno}."
    except (ValueError, RecursionError) as error:
        line, problem = 1, f"not valid JSON: {error}."
    raise BrokenJSONError(line, problem)


class _RefusedError(ValueError):
    """JSON that Python's parser takes and that means something else, or nothing, elsewhere."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RefusedError(f"the key '{twice[:40]}' stands twice in one object; expected it once.")
    return value


def _no_constant(name: str) -> Any:
    raise _RefusedError(f"not valid JSON: {name} is no number of JSON; expected null or a text.")


def load_records(content: bytes) -> Iterator[Record | Problem]:
    """Yield each JSON value of a JSON Lines or JSON file, or what is wrong with it.

    A JSON list yields its entries, any other JSON value is yielded whole.
    """
    # Only "\n" ends a line: str.splitlines would cut a record at a U+2028 inside a text.
    lines = [(i, line) for i, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    if len(lines) > 1 and _stands_alone(lines[0][1]):
        yield from _json_lines(lines)
        return
    try:
        value = parse(content)
    except BrokenJSONError as error:
        if _has_broken_first_line(lines):
            yield from _json_lines(lines)
        else:
            yield Problem(where=f":{error.line}", text=str(error))
        return
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield Record(where=f": [{i}]", number=i + 1, value=item)
    else:
        yield Record(where=f":{lines[0][0]}", number=lines[0][0], value=value)


def _json_lines(lines: list[tuple[int, bytes]]) -> Iterator[Record | Problem]:
    for number, line in lines:
        where = f":{number}"
        try:
            yield Record(where=where, number=number, value=parse(line))
        except BrokenJSONError as error:
            yield Problem(where=where, text=str(error))


def _stands_alone(line: bytes) -> bool:
    try:
        parse(line)
    except BrokenJSONError:
        return False
    return True


def _has_broken_first_line(lines: list[tuple[int, bytes]]) -> bool:
    """Whether a file that is no JSON value looks like JSON Lines that start with a broken line."""
    first = lines[0][1].strip()
    if first.startswith(b"[") or first == b"{":
        return False
    return any(line.lstrip().startswith(b"{") and _stands_alone(line) for _, line in lines[1:])
