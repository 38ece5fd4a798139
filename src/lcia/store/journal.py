"""The journal of a run: every event, one JSON line each, and whoever listens to it."""

import re
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from lcia.errors import StoreError
from lcia.files import (
    LINES_LIMIT,
    append,
    iterate_lines,
    json_bytes,
    parse_json,
    read_bytes,
    write_bytes,
)

_SUM = re.compile(rb', "crc32": "([0-9a-f]{8})"}\Z')

Listener = Callable[[dict[str, Any]], None]


class Journal:
    """Appends events to a JSON Lines file and passes them on.

    Args:
        path: the file; created with its first event. None: events are only passed on.
        listener: called with every event after it is written.
    """

    def __init__(self, path: Path | None, listener: Listener | None = None) -> None:
        self.path = path
        self.listener = listener
        if path is not None and path.exists():
            text = read_bytes(path, limit=LINES_LIMIT)
            if not text.endswith(b"\n"):  # a crash cut the last line off
                write_bytes(path, text[: text.rfind(b"\n") + 1])
            self.write("resumed")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the time of day."""
        record = {"event": event, "time": round(time.time(), 3), **fields}
        if self.path is not None:
            append(self.path, _summed(record))
        self.tell(record)

    def tell(self, record: dict[str, Any]) -> None:
        """Pass an event on without writing it: progress that is worth nothing tomorrow."""
        if self.listener is not None:
            self.listener(record)

    def events(self) -> list[dict[str, Any]]:
        """Return the events written so far."""
        return list(read_journal(self.path)) if self.path is not None else []

    def seconds(self) -> float:
        """Return the seconds between events, without the pauses before an attempt was resumed."""
        return round(
            sum(
                later["time"] - event["time"]
                for event, later in pairwise(self.events())
                if later["event"] != "resumed"
            ),
            1,
        )

    def rewind(self, step: int) -> None:
        """Drop the steps after ``step``: a resumed run takes them again."""
        if self.path is None or not self.path.exists():
            return
        kept = [r for r in read_journal(self.path) if r["event"] != "step" or r["step"] <= step]
        write_bytes(self.path, b"".join(map(_summed, kept)))


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a journal; none if there is no such file.

    Raises:
        StoreError: a line is damaged.
    """
    if path.exists():
        for number, line in enumerate(iterate_lines(path), start=1):
            yield _event(line, where=f"{path}:{number}")


def check_journal(path: Path, *, summed: bool) -> None:
    """Check every line of a run's journal; one that a crash cut off at the end is no finding.

    Args:
        path: the file; nothing is checked if there is none.
        summed: whether every line has to have a checksum.

    Raises:
        StoreError: a line is damaged.
    """
    if not path.exists():
        return
    *lines, last = read_bytes(path, limit=LINES_LIMIT).split(b"\n")
    for number, line in enumerate(lines, start=1):
        _event(line, where=f"{path}:{number}", summed=summed)
    if summed and last:
        try:
            _event(last[:-1], where="", summed=True)
        except StoreError:
            return
        raise StoreError(f"{path}: its last byte differs from what lcia wrote.")


def _summed(record: dict[str, Any]) -> bytes:
    """Return an event as a line that ends with its checksum."""
    body = json_bytes(record).removesuffix(b"}")
    return body + b', "crc32": "%08x"}\n' % zlib.crc32(body)


def _event(line: bytes, *, where: str, summed: bool = False) -> dict[str, Any]:
    found = _SUM.search(line)
    if found and b"%08x" % zlib.crc32(line[: found.start()]) != found[1]:
        raise StoreError(f"{where}: differs from its checksum.")
    if summed and not found:
        raise StoreError(f"{where}: has no checksum where lcia writes one.")
    event = parse_json(line, where=where)
    if not isinstance(event, dict) or "event" not in event:
        raise StoreError(f"{where}: expected an event of a journal.")
    return {key: value for key, value in event.items() if key != "crc32"} if found else event
