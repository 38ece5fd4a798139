"""What was done to an assistant, when and by whom: a log that is only added to.

``audit.jsonl`` in the assistant's folder has one JSON line an entry. Each holds the SHA-256 of the
line before it and, as its last field, that of itself: whoever changes, removes or adds an entry
has to write all later ones anew. Who can do that can write the whole log anew, and an end that is
cut off leaves no trace in what stays: a copy of the last entry elsewhere tells.
"""

import contextlib
import getpass
import hashlib
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filelock import FileLock

from lcia.errors import StoreError
from lcia.files import cannot_write, iterate_lines, json_bytes, parse_json

FILE = "audit.jsonl"
FIRST = "0" * 64
"""What the first entry holds for the line before it."""

_LOCK = ".audit-lock"
_TAIL = 1 << 16
"""Bytes from the end that hold the last entry."""

_acting: ContextVar[str | None] = ContextVar("acting", default=None)


@contextlib.contextmanager
def acting(who: str) -> Iterator[None]:
    """Name who acts in here, such as ``key anna``; else it is the user of this process."""
    token = _acting.set(who)
    try:
        yield
    finally:
        _acting.reset(token)


def who_acts() -> str:
    """Return who acts."""
    if (named := _acting.get()) is not None:
        return named
    try:
        return f"user {getpass.getuser()}"
    except (KeyError, OSError, ImportError):  # a user without a name, as containers have
        return f"user {os.getuid()}"


def acting_key() -> str | None:
    """Return the name of the key with which somebody acts; None where nobody uses a named one."""
    kind, _, name = (_acting.get() or "").partition(" ")
    return name if kind == "key" else None


def record(root: Path, what: str, *, once: bool = False, **fields: Any) -> None:
    """Add an entry, durably.

    A last line that a crash cut off is no entry. It is moved, as it is, into an entry ``torn``.

    Args:
        root: the assistant's folder.
        what: was done.
        once: add nothing if a late entry says the same: what was killed does it again.
        **fields: what it was done to; None is left out.

    Raises:
        WriteError: the log cannot be written.
    """
    path = root / FILE
    told = {name: value for name, value in fields.items() if value is not None}
    try:
        with FileLock(root / _LOCK), path.open("ab+") as file:
            number, previous, late, torn = _end(path)
            if torn:
                file.truncate(file.seek(0, os.SEEK_END) - len(torn))
                text = torn.decode(errors="replace")
                number, previous = _add(file, number, previous, "torn", {"line": text})
            if once and any(e.get("what") == what and told.items() <= e.items() for e in late):
                return
            _add(file, number, previous, what, {"who": who_acts(), **told})
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def entries(root: Path) -> list[dict[str, Any]]:
    """Return all entries, the oldest first.

    Raises:
        StoreError: a line is no entry.
    """
    path = root / FILE
    lines = list(iterate_lines(path)) if path.exists() else []
    return [_parsed(line, where=f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def check(root: Path) -> Iterator[str]:
    """Yield what is wrong with the log: the first entry that is broken, and a line cut off."""
    path = root / FILE
    if not path.exists():
        return
    content = path.read_bytes()
    whole, _, torn = content.rpartition(b"\n")
    previous = FIRST
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        if problem := _problem(line, number=number, previous=previous):
            yield f"{path}:{number}: {problem} Compare the log with a copy: from here on it may "
            "not be what was done."
            return
        previous = hashlib.sha256(line).hexdigest()
    if torn:
        yield (
            f"{path}: the last line is cut off, as by a crash: it is no entry. The next change of "
            "the assistant puts it into an entry 'torn'."
        )


def _problem(line: bytes, *, number: int, previous: str) -> str | None:
    entry = _entry(line)
    if entry is None:
        return "is no entry of lcia's."
    body, _, _ = line.rpartition(b', "sha256": "')
    if entry.get("sha256") != hashlib.sha256(body).hexdigest():
        return "the entry was changed."
    if entry.get("previous") != previous:
        return "does not follow on the entry before it: that was changed, or some are missing."
    return None if entry.get("number") == number else f"has number {entry.get('number')}."


def _end(path: Path) -> tuple[int, str, list[dict[str, Any]], bytes]:
    """Return number and hash of the last entry, the late ones, and what stands behind them."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        whole, newline, torn = file.read().rpartition(b"\n")
    if not newline:
        return 0, FIRST, [], torn
    lines = whole.split(b"\n")
    late = [entry for line in lines if (entry := _entry(line)) is not None]
    last = _entry(lines[-1]) or {}
    number = last.get("number")
    if not isinstance(number, int):
        number = path.read_bytes().count(b"\n")  # ``check`` names the line; the log goes on
    return number, hashlib.sha256(lines[-1]).hexdigest(), late, torn


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return the entry in a line; None if it is none, as the first of a tail may be half."""
    try:
        return _parsed(line, where="a line")
    except StoreError:
        return None


def _add(
    file: Any, number: int, previous: str, what: str, fields: dict[str, Any]
) -> tuple[int, str]:
    head = {"number": number + 1, "time": round(time.time(), 3), "what": what}
    body = json_bytes({**head, **fields, "previous": previous}).removesuffix(b"}")
    line = body + f', "sha256": "{hashlib.sha256(body).hexdigest()}"}}'.encode()
    file.write(line + b"\n")
    return number + 1, hashlib.sha256(line).hexdigest()


def _parsed(line: bytes, *, where: str) -> dict[str, Any]:
    entry = parse_json(line, where=where)
    if not isinstance(entry, dict):
        raise StoreError(f"{where}: expected an entry of the audit log.")
    return entry
