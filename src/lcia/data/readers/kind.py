"""What a file is that lcia does not read: named by its first bytes, with the way to JSON Lines."""

import re

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
    if head[1::2].count(0) > len(head) // 4 or head[::2].count(0) > len(head) // 4:
        return f"looks like UTF-16 without a byte order mark; {_EXPECTED} Save it as UTF-8."
    start = head.lstrip().lower()
    if re.match(rb"<(!doctype|html|\?xml)", start):
        return (
            f"is HTML or XML, perhaps the page of a failed download; {_EXPECTED} Download it again."
        )
    return None


_EXPECTED = "expected JSON, JSON Lines, CSV, Parquet or Arrow."
