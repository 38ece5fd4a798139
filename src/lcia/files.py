"""Files: written whole or not at all, read to the letter and within limits, checked, removed.

Whoever reads sees the old content or the new, never half of it; what was written survives a loss of
power. JSON Lines end at a line feed and nowhere else: U+2028 or U+0085 inside a text is text.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lcia.errors import StoreError, WriteError

RECORD_LIMIT = 16 << 20
"""Bytes of a JSON record, and of one line of JSON Lines, that are read at most."""

LINES_LIMIT = 1 << 29
"""Bytes of a JSON Lines file that are read at most."""

_SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n\Z')
_GONE = re.compile(r"\..+\.(tmp|gone|gone-[0-9a-f]{8})")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, durably and in one step.

    Raises:
        WriteError: the disk is full, read-only or not ours; ``path`` is as it was.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        sync_folder(path.parent)
    except OSError as error:
        _drop(scratch)
        raise cannot_write(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``, durably and in one step."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def json_bytes(value: Any, *, indent: int | None = None) -> bytes:
    """Return ``value`` as JSON in UTF-8.

    Half a surrogate pair, which UTF-8 cannot hold, is written as the escape JSON has for it.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Replace ``path`` by the JSON of ``value``, durably and in one step.

    Without an indent, what is large is written in a quarter of the time.
    """
    write_bytes(path, json_bytes(value, indent=indent) + b"\n")


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """Replace ``path`` by the JSON of ``record`` with a last key ``sha256``: of all before it."""
    body = json_bytes(record, indent=2).removesuffix(b"\n}")
    seal = hashlib.sha256(body).hexdigest()
    write_bytes(path, body + f',\n  "sha256": "{seal}"\n}}\n'.encode())


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """Replace ``path`` by one JSON line per record, durably and in one step."""
    write_bytes(path, b"".join(json_bytes(record) + b"\n" for record in records))


def append(path: Path, content: bytes) -> None:
    """Add ``content`` at the end of a file; it is made if there is none. Not durable.

    Raises:
        WriteError: the disk is full, read-only or not ours.
    """
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        raise cannot_write(path, error) from error


def content_of(path: Path) -> bytes:
    """Return the content of a file that somebody else wrote.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, which might never end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except ValueError:  # half a surrogate pair or a NUL, which no name holds
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            reason = "it is a pipe or a device. Write its content to a file first"
            raise OSError(errno.EINVAL, reason, str(path))
        return file.read()


def read_bytes(path: Path, *, limit: int = RECORD_LIMIT) -> bytes:
    """Return the content of a regular file.

    Raises:
        StoreError: there is none, it cannot be read, is no file, or has more than ``limit`` bytes.
    """
    with _reading(path, limit) as file:
        return file.read(limit)


def parse_json(content: bytes, *, where: str) -> Any:
    """Return the JSON value of ``content``.

    Raises:
        StoreError: it is not UTF-8, not JSON, or nested too deeply; told with ``where``.
    """
    try:
        # Earlier versions wrote half surrogate pairs as they are.
        return json.loads(content.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise StoreError(f"{where}: expected JSON that lcia wrote, found: {reason}.") from error


def read_json(path: Path, *, limit: int = RECORD_LIMIT) -> Any:
    """Return the JSON value in ``path``.

    Raises:
        StoreError: the file is missing, damaged or longer than ``limit`` bytes.
    """
    return parse_json(read_bytes(path, limit=limit), where=str(path))


def read_record(path: Path, *, limit: int = RECORD_LIMIT) -> dict[str, Any]:
    """Return the JSON object in ``path``.

    Raises:
        StoreError: as ``read_json``, or the value is no object.
    """
    return _record(read_json(path, limit=limit), path)


def read_sealed(path: Path) -> dict[str, Any]:
    """Return what ``write_sealed`` wrote, checked, without the checksum.

    A record of schema 1 had none and is returned as it is.

    Raises:
        StoreError: the file is missing, damaged or differs from its checksum.
    """
    content = read_bytes(path)
    seal = _SEAL.search(content)
    if seal and hashlib.sha256(content[: seal.start()]).hexdigest() != seal[1].decode():
        raise StoreError(f"{path}: differs from its checksum. {RESTORE}")
    record = _record(parse_json(content, where=str(path)), path)
    if seal is None and record.get("schema", 1) != 1:
        raise StoreError(f"{path}: has no checksum where lcia writes one. {RESTORE}")
    return {key: value for key, value in record.items() if key != "sha256"} if seal else record


RESTORE = "Put the file back from a copy."
"""What to do about a damaged file."""


def iterate_lines(path: Path, *, limit: int = LINES_LIMIT) -> Iterator[bytes]:
    r"""Yield the lines of a file without the line feed that ends each; only "\n" ends a line.

    Raises:
        StoreError: the file cannot be read, or it or a line is longer than lcia reads.
    """
    with _reading(path, limit) as file:
        number = 0
        while line := file.readline(RECORD_LIMIT + 1):
            number += 1
            if len(line) > RECORD_LIMIT:
                raise StoreError(
                    f"{path}:{number}: is longer than {RECORD_LIMIT:,} bytes, the most lcia reads "
                    "of a line."
                )
            yield line.removesuffix(b"\n")


def read_jsonl(path: Path, *, limit: int = LINES_LIMIT) -> list[Any]:
    """Return the records of a JSON Lines file.

    Raises:
        StoreError: the file is missing, damaged or longer than ``limit`` bytes.
    """
    lines = enumerate(iterate_lines(path, limit=limit), start=1)
    return [parse_json(line, where=f"{path}:{number}") for number, line in lines]


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_sum(path: Path, wanted: str) -> None:
    """Compare a file with its SHA-256.

    Raises:
        StoreError: it is missing, differs, or is no weights and larger than any lcia writes.
    """
    with _reading(path, 1 << 62 if path.suffix == ".safetensors" else LINES_LIMIT):
        if sha256_of(path) != wanted:
            raise StoreError(f"{path}: differs from its checksum. {RESTORE}")


def checksums(folder: Path) -> dict[str, str]:
    """Return file to SHA-256 of all files in ``folder``, by their path below it.

    What a killed process left half written is left out: nothing reads it.

    Raises:
        StoreError: there is a link or something else that is neither file nor folder.
    """
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(files_below(folder))
        if not is_leftover(path.name)
    }


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every regular file below ``folder``.

    Raises:
        StoreError: there is a link or something else that is neither file nor folder.
    """
    for parent, folders, names in os.walk(folder):
        for name in (*names, *folders):
            path = Path(parent, name)
            if not (path.is_dir() or path.is_file()) or path.is_symlink():
                raise StoreError(f"{path}: is neither file nor folder. Remove it.")
        yield from (Path(parent, name) for name in names)


def check_tree(folder: str) -> None:
    """Check that all below a folder is files and folders: what ``files_below`` checks, faster.

    Raises:
        StoreError: there is a link or something else that is neither file nor folder.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                check_tree(entry.path)
            elif not entry.is_file(follow_symlinks=False):
                raise StoreError(f"{entry.path}: is neither file nor folder. Remove it.")


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, durably.

    Raises:
        WriteError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(folder, error) from error


def place_copy(source: Path, target: Path) -> None:
    """Make ``target`` a copy of the folder ``source``; it appears by one rename.

    If it is there already with the same content, it stays. Other content is replaced: only what an
    interrupted attempt left, which nothing refers to, may stand there.

    Raises:
        WriteError: the disk is full, read-only or not ours.
    """
    if target.is_dir() and checksums(target) == checksums(source):
        return
    make_folders(target.parent)
    scratch = target.with_name(f".{target.name}.tmp")
    try:
        for leftover in (scratch, target):
            discard(leftover)
        shutil.copytree(source, scratch)
        settle(scratch, target)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise cannot_write(target, error) from error


def settle(draft: Path, target: Path) -> None:
    """Rename a finished folder to ``target``, durably: all that is in it is on disk before."""
    sync_tree(draft)
    os.replace(draft, target)
    sync_folder(target.parent)


def discard(path: Path) -> None:
    """Remove a file or folder, if it is there.

    A folder is renamed first: whoever looks at ``path`` sees all of it or nothing, whenever this is
    killed. ``sweep`` removes what is left of it then.
    """
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        gone = path.with_name(f".{path.name.lstrip('.')}.gone-{secrets.token_hex(4)}")
        os.replace(path, gone)
        sync_folder(path.parent)
        shutil.rmtree(gone)
        sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written or half removed in ``folder``."""
    for name in os.listdir(folder) if folder.is_dir() else ():
        if _GONE.fullmatch(name):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def is_leftover(name: str) -> bool:
    """Tell whether a file or folder of that name is what ``sweep`` removes."""
    return _GONE.fullmatch(name) is not None


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable, where the platform can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make what was written to a file durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_tree(folder: Path) -> None:
    """Make everything in ``folder`` durable."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(Path(parent, name))
        sync_folder(Path(parent))


def cannot_write(path: Path, error: OSError) -> WriteError:
    """Return the error that says why ``path`` cannot be written and what to do."""
    number = _errno_of(error)
    reason = os.strerror(number) if number else str(error)
    return WriteError(f"{path}: cannot be written: {reason}. {_remedy(number)}")


def disk_error(error: Exception) -> WriteError | None:
    """Return what a disk's refusal, whoever met it, means for the user; None: it was none.

    Libraries raise errors of their own for a full disk. The number of the system's error is in
    their text; torch's has none, and safetensors says of any file it cannot open that it is not
    there.
    """
    if unopened := _SAFETENSORS.fullmatch(str(error)):
        return _why_unopened(Path(unopened[1]))
    number = _errno_of(error)
    if _TORCH_WRITER.search(str(error)):
        return WriteError(
            "A checkpoint cannot be written: the disk is full or read-only, or too many files are "
            "open. Make room for it and run the same command again."
        )
    if number not in _DISK:
        return None
    path = getattr(error, "filename", None)
    where = f"{path}: " if path else ""
    return WriteError(f"{where}{os.strerror(number)}. {_remedy(number)}")


_ROOM = "Make room and run the same command again."
_OPEN = "Allow more open files ('ulimit -n') and run the same command again."
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _ROOM),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _OPEN),
    errno.EFBIG: "Allow larger files ('ulimit -f') and run the same command again.",
}
_DISK = frozenset((*_REMEDIES, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO))
_TORCH_WRITER = re.compile(
    r"inline_container\.cc:\d+\] \. (unexpected pos|file write)|StreamWriter|basic_ios::clear"
)
_SAFETENSORS = re.compile(r"No such file or directory: (.+)", re.DOTALL)
_NUMBER = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)|unable to open file .*: [^()]* \((\d+)\)")


def _why_unopened(path: Path) -> WriteError | None:
    """Return why a file that is there could not be opened; None: it is not there."""
    if not path.exists():
        return None
    try:
        path.open("rb").close()
    except OSError as error:
        return disk_error(error)
    return WriteError(f"{path}: could not be opened and can be now: too many files were. {_OPEN}")


def _remedy(number: int) -> str:
    return _REMEDIES.get(number, "Make it writable and run the same command again.")


def _errno_of(error: Exception) -> int:
    if isinstance(number := getattr(error, "errno", None), int):
        return number
    found = _NUMBER.search(str(error))
    return int(found[1] or found[2] or found[3]) if found else 0


@contextmanager
def _reading(path: Path, limit: int) -> Iterator[BinaryIO]:
    try:
        # Without waiting: a pipe of that name would never answer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{path}: is no regular file; expected one that lcia wrote.")
            if status.st_size > limit:
                raise StoreError(
                    f"{path}: has {status.st_size:,} bytes; lcia reads at most {limit:,} there."
                )
            yield file
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}.") from error


def _record(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise StoreError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def _drop(scratch: Path) -> None:
    try:
        scratch.unlink(missing_ok=True)
    except OSError:
        return  # the folder is what cannot be written; ``sweep`` finds it once it can
