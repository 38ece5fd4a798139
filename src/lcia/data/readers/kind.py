"""What a file is that is no JSON: named by its first bytes, with the way to JSON Lines."""

import csv
import re

MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed with gzip", "Unpack it with gunzip."),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "Unpack it with unzstd."),
    (b"BZh", "compressed with bzip2", "Unpack it with bunzip2."),
    (b"\xfd7zXZ\x00", "compressed with xz", "Unpack it with unxz."),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "Unpack it with unlz4."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it, and name the file that was in it."),
    (
        b"PK\x03\x04",
        "a zip archive or a spreadsheet (xlsx)",
        "Unpack it, or save the table as CSV.",
    ),
    (b"PK\x05\x06", "an empty zip archive", "Name the file with the samples."),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "Save the table as CSV."),
    (b"PAR1", "Parquet", "Convert it: {pandas}."),
    (b"ARROW1", "Arrow", "Convert it: {datasets}."),
    (b"\xff\xff\xff\xff", "an Arrow stream", "Convert it: {datasets}."),
    (b"FEA1", "Feather", "Convert it with pandas.read_feather and to_json(lines=True)."),
    (b"Obj\x01", "Avro", "Convert it to JSON Lines."),
    (b"ORC", "ORC", "Convert it to JSON Lines."),
    (b"SQLite format 3\x00", "an SQLite database", "Write the samples to a JSON Lines file."),
    (b"\x89HDF", "HDF5", "Write the samples to a JSON Lines file."),
    (b"%PDF", "a PDF", "Write the samples to a JSON Lines file."),
    (b"\x89PNG", "a picture (PNG)", "Name the file with the samples."),
    (b"\xff\xd8\xff", "a picture (JPEG)", "Name the file with the samples."),
    (b"GIF8", "a picture (GIF)", "Name the file with the samples."),
    (b"\x93NUMPY", "a NumPy array", "Write the samples to a JSON Lines file."),
    (b"\x80\x02", "a Python pickle", "lcia opens none; write the samples as JSON Lines."),
    (b"\x80\x03", "a Python pickle", "lcia opens none; write the samples as JSON Lines."),
    (b"\x80\x04", "a Python pickle", "lcia opens none; write the samples as JSON Lines."),
    (b"\x80\x05", "a Python pickle", "lcia opens none; write the samples as JSON Lines."),
    (b"\x00\x00\xfe\xff", "UTF-32", "Save it as UTF-8."),
    (b"\xff\xfe\x00\x00", "UTF-32", "Save it as UTF-8."),
    (b"\xff\xfe", "UTF-16", "Save it as UTF-8."),
    (b"\xfe\xff", "UTF-16", "Save it as UTF-8."),
    (b"version https://git-lfs", "a Git LFS pointer", "Fetch the file: git lfs pull."),
)
"""First bytes, what they say the file is, what to do; a longer beginning before a shorter."""

PANDAS = "pandas.read_parquet(FILE).to_json('data.jsonl', orient='records', lines=True)"
DATASETS = "datasets.Dataset.from_file(FILE).to_json('data.jsonl')"
CSV = (
    'Convert it: python -c "import csv,json,sys; '
    '[print(json.dumps(r)) for r in csv.DictReader(sys.stdin{tab})]" < FILE > data.jsonl.'
)
_TAR = slice(257, 262)
_SNIFFED = 4_096


def foreign(content: bytes) -> str | None:
    """Return what a file is and what to do with it, if it cannot be JSON; else None."""
    for magic, name, remedy in MAGIC:
        if content.startswith(magic):
            return f"is {name}; {_EXPECTED} {remedy.format(pandas=PANDAS, datasets=DATASETS)}"
    if content[_TAR] == b"ustar":
        return f"is a tar archive; {_EXPECTED} Unpack it, and name the file that was in it."
    head = content[:_SNIFFED]
    if head[1::2].count(0) > len(head) // 4 or head[::2].count(0) > len(head) // 4:
        return f"looks like UTF-16 without a byte order mark; {_EXPECTED} Save it as UTF-8."
    start = head.lstrip().lower()
    if re.match(rb"<(!doctype|html|\?xml)", start):
        return (
            f"is HTML or XML, perhaps the page of a failed download; {_EXPECTED} Download it again."
        )
    return _table(head)


def _table(head: bytes) -> str | None:
    """Return what to do with a table of separated values; None if the text is none."""
    lines = head.decode(errors="replace").splitlines()
    if not lines or lines[0].lstrip().startswith(("{", "[", '"{')):
        return None
    for separator, name, option in ((",", "CSV", ""), ("\t", "TSV", ", delimiter='\\t'")):
        rows = list(csv.reader(lines[:2], delimiter=separator))
        if len(rows[0]) > 1 and all(cell.strip() for cell in rows[0]):
            return f"is {name}; {_EXPECTED} {CSV.replace('{tab}', option)}"
    return None


_EXPECTED = "expected JSON or JSON Lines."
