"""From bytes to JSON values, each with its place in the file."""

import bz2
import gzip
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lcia.data.readers.base import Problem, Record, RecordError
from lcia.errors import DataError, MissingDependencyError
from lcia.files import content_of

BOM = b"\xef\xbb\xbf"
BINARY = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
"""First bytes of tables that are no text."""


def load_bytes(path: Path) -> bytes:
    """Return the file's content, unpacked, as UTF-8 without a byte order mark.

    Raises:
        DataError: no file, a directory, unreadable, damaged, empty, or something else than samples:
            the message names it.
        MissingDependencyError: the package that unpacks it is not installed.
    """
    try:
        content = content_of(path)
    except FileNotFoundError:
        if web := re.match(r"(https?):/+(.*)", str(path)):  # a path keeps one slash of two
            raise DataError(
                f"{web[1]}://{web[2]}: is a web address; expected a file. Download it first."
            ) from None
        raise DataError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory; expected a file.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    content = _unpacked(content, path)
    if binary_kind(content) is not None:
        return content
    content = _as_utf8(content, path)
    if (other := foreign(content)) is not None:
        raise DataError(f"{path}: {other}")
    if b"\r" in content and b"\n" not in content:
        content = content.replace(b"\r", b"\n")  # lines of an old Mac
    if not content.strip():
        raise DataError(f"{path}: is empty; expected at least one record.")
    return content


def binary_kind(content: bytes) -> str | None:
    """Return ``parquet`` or ``arrow`` if the bytes begin such a table."""
    return next((kind for magic, kind in BINARY.items() if content.startswith(magic)), None)


def _unpacked(content: bytes, path: Path) -> bytes:
    for magic, (name, unpack) in _PACKED.items():
        if content.startswith(magic):
            try:
                inner = unpack(content)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise DataError(f"{path}: is damaged {name}: {error}. Copy it again.") from error
            if inner.startswith(tuple(_PACKED)):
                raise DataError(f"{path}: is packed twice. Unpack it once.")
            return inner
    return content


def _unzstd(content: bytes) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependencyError(
            "To unpack zstd, lcia needs the package 'zstandard'. Install it: pip install "
            "'lcia[data]'"
        ) from error
    parts = []
    while content:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(content))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        if not frame.eof:
            raise ValueError("it ends in the middle")
        content = frame.unused_data
    return b"".join(parts)


_PACKED: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"\x28\xb5\x2f\xfd": ("zstd", _unzstd),
    b"BZh": ("bzip2", bz2.decompress),
    b"\xfd7zXZ\x00": ("xz", lzma.decompress),
}
"""First bytes of packed files, what packed them, and what unpacks them."""


def _as_utf8(content: bytes, path: Path) -> bytes:
    """Return text as UTF-8: what a byte order mark says is believed, and no more.

    Raises:
        DataError: it is not what its mark says, told with the byte.
    """
    if not content.startswith((b"\xff\xfe", b"\xfe\xff")) or content[2:4] == b"\x00\x00":
        return content.removeprefix(BOM)
    try:
        return content.decode("utf-16").encode()
    except UnicodeDecodeError as error:
        line = content[: error.start].decode("utf-16", "replace").count("\n") + 1
        raise DataError(
            f"{path}:{line}: byte {error.start + 1} of the file is not UTF-16, as its mark says: "
            f"{error.reason}. Save the file as UTF-8."
        ) from error


def check_utf8(content: bytes, path: Path) -> None:
    """Check that text is UTF-8.

    Raises:
        DataError: it is not, told with line and byte.
    """
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{path}:{line}: byte {column} is not UTF-8; expected UTF-8. Save the file as UTF-8."
        ) from error


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
        what = error.msg.removesuffix(" at")
        problem = f"not valid JSON: {what} at column {error.colno}."
    except RecursionError:
        line, problem = 1, "lists and objects stand in each other too deeply; expected fewer."
    except ValueError:  # Python's own bound on the digits of a number
        line = 1
        problem = f"a number has over {sys.get_int_max_str_digits()} digits; write it as a text."
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


MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x04\x22\x4d\x18", "compressed with lz4", "Unpack it with unlz4."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it, and name the file that was in it."),
    (
        b"PK\x03\x04",
        "a zip archive or a spreadsheet (xlsx)",
        "Unpack it, or save the table as CSV.",
    ),
    (b"PK\x05\x06", "an empty zip archive", "Name the file with the samples."),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "Save the table as CSV."),
    (b"FEA1", "Feather", "Convert it with pandas.read_feather and to_json(lines=True)."),
    (b"Obj\x01", "Avro", "Convert it to JSON Lines."),
    (b"ORC", "ORC", "Convert it to JSON Lines."),
    (b"SQLite format 3\x00", "an SQLite database", "Write the samples to a JSON Lines file."),
    (b"\x89HDF", "HDF5", "Write the samples to a JSON Lines file."),
    (b"%PDF", "a PDF", "Write the samples to a JSON Lines file."),
    (b"\x89PNG", "an image (PNG)", "Name the file with the samples."),
    (b"\xff\xd8\xff", "an image (JPEG)", "Name the file with the samples."),
    (b"GIF8", "an image (GIF)", "Name the file with the samples."),
    (b"\x93NUMPY", "a NumPy array", "Write the samples to a JSON Lines file."),
    (b"\x80\x02", "a Python pickle", "lcia opens none; write the samples as JSON Lines."),
    (b"\x80\x03", "a Python pickle", "lcia opens none; write the samples as JSON Lines."),
    (b"\x80\x04", "a Python pickle", "lcia opens none; write the samples as JSON Lines."),
    (b"\x80\x05", "a Python pickle", "lcia opens none; write the samples as JSON Lines."),
    (b"\x00\x00\xfe\xff", "UTF-32", "Save it as UTF-8."),
    (b"\xff\xfe\x00\x00", "UTF-32", "Save it as UTF-8."),
    (b"version https://git-lfs", "a Git LFS pointer", "Fetch the file: git lfs pull."),
)
"""First bytes, what they say the file is, what to do; a longer beginning before a shorter."""

_TAR = slice(257, 262)
_SNIFFED = 4_096


def foreign(content: bytes) -> str | None:
    """Return what a file is and what to do with it, if lcia does not read it; else None."""
    for magic, name, remedy in MAGIC:
        if content.startswith(magic):
            return f"is {name}; {_EXPECTED} {remedy}"
    if content[_TAR] == b"ustar":
        return f"is a tar archive; {_EXPECTED} Unpack it, and name the file that was in it."
    head = content[:_SNIFFED]
    text = head.rstrip(b"\0")
    if len(head) - len(text) > 3:  # UTF-16 and UTF-32 end in at most three
        line = head.count(b"\n", 0, len(text)) + 1
        return (
            f"is filled with NUL bytes from line {line} on, as a crash of its writer or a broken "
            f"copy leaves it; {_EXPECTED} Copy it again, or cut it off there."
        )
    if head[1::2].count(0) > len(head) // 4 or head[::2].count(0) > len(head) // 4:
        return f"looks like UTF-16 without a byte order mark; {_EXPECTED} Save it as UTF-8."
    start = head.lstrip().lower()
    if re.match(rb"<(!doctype|html|\?xml)", start):
        return (
            f"is HTML or XML, perhaps the page of a failed download; {_EXPECTED} Download it again."
        )
    return None


_EXPECTED = "expected JSON, JSON Lines, CSV, Parquet or Arrow."
