"""Answers kept as they come, so that what was killed goes on where answering was."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcia.files import LINES_LIMIT, append, json_bytes, read_bytes, write_bytes


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Where answers are kept while they come.

    Attributes:
        path: the file; whoever has all of them removes it.
        given: what answers depend on besides the requests, such as weights not yet committed.
    """

    path: Path
    given: str = ""


class KeptAnswers:
    """A JSON Lines file of answers; each line ends with its checksum.

    The first line says what was asked. A file of other requests is begun anew; a line that was
    cut off or damaged, and what follows it, is dropped: it is answered again.

    Args:
        path: the file, made if there is none.
        of: digest of what is asked.

    Attributes:
        answers: number of a request to its answer.
    """

    def __init__(self, path: Path, of: str) -> None:
        self.path = path
        self.answers: dict[int, str] = {}
        head = _line({"of": of})
        content = read_bytes(path, limit=LINES_LIMIT) if path.exists() else b""
        good = head
        if content.startswith(head):
            for line in content[len(head) :].splitlines(keepends=True):
                record = _record(line)
                if record is None:
                    break
                self.answers |= {int(i): text for i, text in record["answers"].items()}
                good += line
        if good != content:
            write_bytes(path, good)

    def add(self, answers: Mapping[int, str]) -> None:
        """Keep answers.

        Raises:
            WriteError: the disk is full, read-only or not ours.
        """
        self.answers |= answers
        append(self.path, _line({"answers": {str(i): text for i, text in answers.items()}}))


def digest(asked: Sequence[Any]) -> str:
    """Return the digest of JSON values, the same on every machine."""
    return hashlib.sha256(json_bytes(asked)).hexdigest()


def _line(record: Mapping[str, Any]) -> bytes:
    body = json.dumps(record).encode()
    return b"%s %08x\n" % (body, zlib.crc32(body))


def _record(line: bytes) -> Any:
    """Return what a line holds; None if it is not as it was written."""
    body, _, rest = line.rpartition(b" ")
    return json.loads(body) if rest == b"%08x\n" % zlib.crc32(body) else None
