"""Files that are no JSON are named, and what the message says to do works."""

import bz2
import gzip
import json
import lzma
import re
import subprocess
import sys
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
        (gzip.compress(LINE), "compressed with gzip"),
        (bz2.compress(LINE), "compressed with bzip2"),
        (lzma.compress(LINE), "compressed with xz"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "compressed with zstd"),
        (b"PAR1\x15\x04\xff\xfe\x00", "Parquet"),
        (b"ARROW1\x00\x00", "Arrow"),
        (b"SQLite format 3\x00\x10", "an SQLite database"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\x80\x04\x95\x00", "a Python pickle"),
        (LINE.decode().encode("utf-16"), "UTF-16"),
        (LINE.decode().encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (LINE.decode().encode("utf-32"), "UTF-32"),
        (b"<!DOCTYPE html><html>404</html>", "HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"prompt,completion\nCapital of Peru?,Lima\n", "CSV"),
        (b"prompt\tcompletion\nCapital of Peru?\tLima\n", "TSV"),
    ],
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.bin"])  # by content, whatever the name
def test_a_file_that_is_no_json_is_named(tmp_path, name, content, said):
    text = message(tmp_path / name, content)
    assert said in text
    assert "expected JSON or JSON Lines." in text


def test_zip_archives_and_spreadsheets_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("data.jsonl", LINE)
    assert "a zip archive or a spreadsheet" in message(
        tmp_path / "data.xlsx", (tmp_path / "x").read_bytes()
    )


@pytest.mark.parametrize("separator", [",", "\t"])
def test_the_command_that_converts_a_table_works(tmp_path, separator):
    rows = [["prompt", "completion"], ["Capital of Peru?", "Lima"], ["And of\nChad?", "N'Djamena"]]
    quoted = ['"' + cell + '"' if "\n" in cell else cell for row in rows for cell in row]
    table = "".join(
        separator.join(quoted[i : i + 2]) + "\n" for i in range(0, len(quoted), 2)
    ).encode()
    text = message(tmp_path / "table.csv", table)
    command = re.search(r"Convert it: python (.*)\.$", text)[1]
    command = f"{sys.executable} {command}".replace("FILE", "table.csv")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert [s.answers for s in read(tmp_path / "data.jsonl")] == [("Lima",), ("N'Djamena",)]


def test_unpacking_as_told_makes_a_readable_file(tmp_path):
    text = message(tmp_path / "data.jsonl.gz", gzip.compress(LINE))
    tool = re.search(r"Unpack it with (\w+)\.", text)[1]
    subprocess.run([tool, "data.jsonl.gz"], cwd=tmp_path, check=True)
    assert len(read(tmp_path / "data.jsonl")) == 1


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
