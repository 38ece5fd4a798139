"""The journal of a run: every event, one JSON line each, and whoever listens to it."""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from lcia.files import (
    LINES_LIMIT,
    append,
    json_bytes,
    read_bytes,
    read_jsonl,
    write_bytes,
    write_jsonl,
)

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
            append(self.path, json_bytes(record) + b"\n")
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
        write_jsonl(self.path, kept)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a journal; none if there is no such file."""
    if path.exists():
        yield from read_jsonl(path)
