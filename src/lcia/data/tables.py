"""Tables and data sets of the hub, through ``datasets``, and fields under other names."""

import csv
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lcia.data.readers.base import Problem, Reader, Record
from lcia.data.readers.fields import SWITCHES
from lcia.data.readers.source import binary_kind, check_utf8, load_bytes, load_records
from lcia.errors import ConfigError, DataError, MissingDependencyError
from lcia.registry import READERS, nearest

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", re.ASCII)
FILE_ENDS = {"csv", "tsv", "json", "jsonl", "parquet", "arrow", "txt", "gz", "zst", "bz2", "xz"}
SEPARATORS = (",", ";", "\t", "|")
PACKED = re.compile(r"\.(gz|zst|bz2|xz)$")
_SNIFFED = 65_536


def is_hub_id(path: Path, *, base: Path = Path()) -> bool:
    """Whether a path that is no file names a data set of the hub: ``user/name[:subset]``.

    A folder of the user's name makes it a mistyped path instead.
    """
    place = base / path
    if not HUB_ID.fullmatch(str(path)) or place.exists() or place.parent.exists():
        return False
    return path.name.rpartition(".")[2].lower() not in FILE_ENDS


def separator_of(content: bytes, *, name: str) -> str | None:
    """Return what separates the cells of a CSV or TSV file; None if the text is no table.

    Args:
        content: the file's, UTF-8.
        name: its name: a table of one column is known by its ending alone.
    """
    head = content[:_SNIFFED].decode(errors="replace")
    first = head.splitlines()[:1]
    if not first or first[0].lstrip().startswith(("{", "[", '"{')):
        return None
    if name.endswith(".tsv"):
        return "\t"
    named = name.endswith(".csv")
    rows = {sep: next(csv.reader(first, delimiter=sep)) for sep in SEPARATORS}
    full = {sep: len(row) for sep, row in rows.items() if all(cell.strip() for cell in row)}
    best = max(full, key=lambda sep: full[sep], default=",")
    if full.get(best, 0) > 1 and (named or best in ",\t;"):
        return best
    return "," if named else None


def load_values(path: Path, *, split: str | None) -> list[Record | Problem]:
    """Return the records of a file, of a folder of data files, or of a data set of the hub.

    Args:
        path: JSON, JSON Lines, CSV, TSV, Parquet or Arrow, packed or not; a folder; a hub id.
        split: of a folder or of a hub id.

    Raises:
        ConfigError: a split of a file, or none where there are several.
        DataError: it cannot be read.
        MissingDependencyError: an optional package is needed.
    """
    if path.is_dir() or is_hub_id(path):
        return list(hub_records(path, split=split))
    content = load_bytes(path)
    if split is not None:
        raise ConfigError(f"{path}: is one file and has no split '{split}'. Remove split.")
    if kind := binary_kind(content):
        return list(table_records(path, content, kind))
    name = PACKED.sub("", path.name.lower())
    separator = separator_of(content, name=name)
    if separator is None:
        return list(load_records(content))
    if name.endswith((".json", ".jsonl")):
        raise DataError(f"{path}: is CSV by its first line, JSON by its name. Rename it to .csv.")
    check_utf8(content, path)
    return list(table_records(path, content, "csv", separator=separator))


def table_records(
    path: Path, content: bytes, kind: str, *, separator: str = ","
) -> Iterator[Record]:
    """Yield the rows of a table.

    Every cell of a CSV file is the text that stands there: ``007`` and ``NA`` are no numbers and
    no gaps. Parquet and Arrow name their types.

    Args:
        path: the file, for messages.
        content: what is in it, unpacked, UTF-8 if it is text.
        kind: ``csv``, ``parquet`` or ``arrow``.
        separator: of a CSV file.

    Raises:
        DataError: it is damaged.
        MissingDependencyError: the library is not installed.
    """
    datasets = _library(path)
    if kind == "parquet" and _has_no_rows(path, content):
        return
    with tempfile.TemporaryDirectory() as scratch:
        # Its own name: ``datasets`` takes brackets and stars in a path for a pattern.
        file = Path(scratch) / f"data.{kind}"
        file.write_bytes(content)
        with _told(path, kind.upper() if kind == "csv" else kind.title()):
            options: dict[str, Any] = {}
            if kind == "csv":
                options = _csv_options(datasets, file, separator, named=path)
            rows = datasets.load_dataset(
                kind, data_files=str(file), split="train", streaming=True, **options
            )
            yield from _records(datasets, rows)


def hub_records(source: Path, *, split: str | None) -> Iterator[Record]:
    """Yield the rows of a data set of the hub, or of a folder of data files.

    Args:
        source: ``user/name``, ``user/name:subset``, or a folder.
        split: which part; None: the only one.

    Raises:
        ConfigError: there are several parts, or no such part.
        DataError: there is no such data set, it cannot be reached, or is damaged.
        MissingDependencyError: the library is not installed.
    """
    datasets = _library(source)
    name, _, subset = str(source).partition(":")
    with _told(source, "a data set"):
        if (source / "dataset_info.json").is_file() or (source / "dataset_dict.json").is_file():
            parts = datasets.load_from_disk(name)
            if not isinstance(parts, dict):
                parts = {"train": parts}
        else:
            parts = datasets.load_dataset(name, subset or None, streaming=True)
        if split is None and len(parts) > 1:
            raise ConfigError(f"{source}: has the splits {', '.join(parts)}. Choose with --split.")
        chosen = split or next(iter(parts))
        if chosen not in parts:
            raise ConfigError(f"{source}: has no split '{chosen}'; expected {', '.join(parts)}.")
        yield from _records(datasets, parts[chosen])


def _library(source: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"{source}: to read tables and data sets of the hub, lcia needs the package "
            "'datasets'. Install it: pip install 'lcia[data]'"
        ) from error
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    return datasets


def _csv_options(datasets: Any, file: Path, separator: str, *, named: Path) -> dict[str, Any]:
    """Return what makes ``datasets`` read every cell as text, and refuse longer rows."""
    import pandas

    options = {"sep": separator, "keep_default_na": False, "index_col": False}
    header = pandas.read_csv(file, nrows=1, dtype=str, header=None, **options)
    columns = header.iloc[0].tolist() if len(header) else []
    for name in columns:
        if name and columns.count(name) > 1:  # pandas would call the second one 'name.1'
            raise DataError(
                f"{named}:1: the column '{name}' stands twice in the header; expected it once."
            )
    names = list(pandas.read_csv(file, nrows=0, dtype=str, **options).columns)
    features = datasets.Features({name: datasets.Value("string") for name in names})
    return {**options, "features": features}


def _has_no_rows(path: Path, content: bytes) -> bool:
    """Whether a Parquet file has no row, which ``datasets`` takes for an error of its own."""
    import pyarrow
    from pyarrow import parquet

    with _told(path, "Parquet"):
        return parquet.ParquetFile(pyarrow.BufferReader(content)).metadata.num_rows == 0


@contextmanager
def _told(source: Path, kind: str) -> Iterator[None]:
    """Say what is wrong with a table in one line."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        with warnings.catch_warnings():
            # pandas only warns of rows that are longer than the header, and cuts them.
            warnings.filterwarnings("error", message="Length of header or names")
            yield
    except (ConfigError, DataError):
        raise
    except (HfHubHTTPError, OfflineModeIsEnabled, ConnectionError) as error:
        raise DataError(
            f"{source}: is no file here, and the hub does not answer for it: {_line(error)}"
        ) from error
    except FileNotFoundError as error:
        if source.is_dir():
            raise DataError(
                f"{source}: is a folder without data files; expected a file, or a folder of CSV, "
                "Parquet, Arrow or JSON files."
            ) from error
        raise DataError(
            f"{source}: is no file here, and the hub has no such data set that you may read."
        ) from error
    except (DatasetsError, ValueError, OSError, Warning, UnicodeError) as error:
        raise DataError(f"{source}: cannot be read as {kind}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:300] or type(cause).__name__


def _records(datasets: Any, rows: Any) -> Iterator[Record]:
    features = rows.features or {}
    if features:
        rows = rows.decode(False) if hasattr(rows, "decode") else rows
    labels = {k: f for k, f in features.items() if isinstance(f, datasets.ClassLabel)}
    for i, row in enumerate(rows, start=1):
        value = dict(row)
        for key, feature in labels.items():
            if isinstance(value[key], int) and value[key] >= 0:
                value[key] = feature.int2str(value[key])
        yield Record(where=f": row {i}", number=i, value=value)


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
