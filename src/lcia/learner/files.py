"""Writing files so that a reader sees the old or the new content, never half of it."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lcia.data.wheels import sha256_of
from lcia.errors import StoreError


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by the JSON of ``value``, durably and in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``, durably and in one step."""
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    sync_folder(path.parent)


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """Replace ``path`` by one JSON line per record, durably and in one step."""
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def read_json(path: Path) -> Any:
    """Return the JSON value in ``path``.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: expected JSON that lcia wrote, found: {error}.") from error


def read_jsonl(path: Path) -> list[Any]:
    """Return the records of a JSON Lines file.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: expected JSON Lines that lcia wrote, found: {error}.") from error


def publish(source: Path, target: Path) -> None:
    """Make ``target`` a copy of the folder ``source``; it appears by one rename.

    What an interrupted attempt left at ``target`` is replaced: only call this for a folder that
    nothing refers to yet.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.tmp")
    for leftover in (scratch, target):
        if leftover.exists():
            shutil.rmtree(leftover)
    shutil.copytree(source, scratch)
    for path in scratch.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    os.replace(scratch, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable, where the platform can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checksums(folder: Path) -> dict[str, str]:
    """Return file name to SHA-256 of the files in ``folder``."""
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file()}
