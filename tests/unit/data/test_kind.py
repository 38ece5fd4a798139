"""Files that lcia does not read are named; packed files and other encodings are read."""

import bz2
import gzip
import json
import lzma
import zipfile

import pytest

from lcia.data import read
from lcia.errors import DataError

LINE = json.dumps({"prompt": "Capital of Peru?", "completion": "Lima"}).encode() + b"\n"


def message(path, content):
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"SQLite format 3\x00\x10", "an SQLite database"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\x80\x04\x95\x00", "a Python pickle"),
        (LINE.decode().encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (LINE.decode().encode("utf-32"), "UTF-32"),
        (b"<!DOCTYPE html><html>404</html>", "HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.bin"])  # by content, whatever the name
def test_a_file_that_lcia_does_not_read_is_named(tmp_path, name, content, said):
    text = message(tmp_path / name, content)
    assert said in text
    assert "expected JSON, JSON Lines, CSV, Parquet or Arrow." in text


def test_zip_archives_and_spreadsheets_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("data.jsonl", LINE)
    assert "a zip archive or a spreadsheet" in message(
        tmp_path / "data.xlsx", (tmp_path / "x").read_bytes()
    )


def zstd(content):
    return pytest.importorskip("zstandard").compress(content)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.jsonl", "data"])  # by content
def test_packed_files_are_unpacked(tmp_path, pack, name):
    (tmp_path / name).write_bytes(pack(LINE) + pack(LINE))
    assert [sample.prompt for sample in read(tmp_path / name)] == ["Capital of Peru?"] * 2


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_damaged_packed_files_are_refused(tmp_path, pack):
    packed = pack(LINE * 50)
    for damaged in (packed[:-4], packed[: len(packed) // 2]):
        assert ": is damaged " in message(tmp_path / "data.jsonl.gz", damaged)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_byte_order_mark_says_what_the_encoding_is(tmp_path, encoding):
    for content in (LINE, b"prompt,completion\r\nCapital of Per\xc3\xba?,Lima\r\n"):
        (tmp_path / "data.txt").write_bytes(content.decode().encode(encoding))
        assert [sample.answers for sample in read(tmp_path / "data.txt")] == [("Lima",)]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + LINE,
        LINE.replace(b"\n", b"\r\n"),
        LINE.replace(b"\n", b"\r") * 2,
        b"\n\n" + LINE,
        b"[" + LINE + b"]",
        LINE.replace(b"Lima", "Lima\u2028\u0085".encode()),
    ],
)
def test_marks_line_ends_and_blank_lines_do_no_harm(tmp_path, content):
    (tmp_path / "data.jsonl").write_bytes(content)
    assert {s.prompt for s in read(tmp_path / "data.jsonl")} == {"Capital of Peru?"}


def test_latin_1_is_refused_with_line_and_byte(tmp_path):
    text = message(tmp_path / "data.jsonl", LINE + LINE.replace(b"Peru", b"Per\xfa"))
    assert text.startswith(":2: byte 27 is not UTF-8")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "a", "prompt": "b", "completion": "c"}', "the key 'prompt' stands twice"),
        (b'{"prompt": "a", "completion": "c", "weight": NaN}', "NaN is no number of JSON"),
        (b'{"prompt": "a", "completion": "c", "score": -Infinity}', "-Infinity is no number"),
    ],
)
def test_json_that_says_two_things_or_nothing_is_refused(tmp_path, line, said):
    assert said in message(tmp_path / "data.jsonl", line)
