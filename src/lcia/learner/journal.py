"""The journal of a run: every event, one JSON line each, and whoever listens to it."""

import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

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
            text = path.read_bytes()
            if not text.endswith(b"\n"):  # a crash cut the last line off
                path.write_bytes(text[: text.rfind(b"\n") + 1])
            self.write("resumed")

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the time of day."""
        record = {"event": event, "time": round(time.time(), 3), **fields}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
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
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        os.replace(scratch, self.path)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a journal; none if there is no such file."""
    if path.exists():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())
