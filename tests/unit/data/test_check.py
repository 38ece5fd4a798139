"""What a file is, what is wrong with it, and twelve shapes in which people have their data."""

import bz2
import gzip
import json
import lzma
import re
import zipfile
from pathlib import Path

import pytest

from lcia.data import Lengths, TaskConfig, check, load_task, read, read_all
from lcia.errors import DataError
from lcia.models import ChatFormat
from lcia.registry import READERS
from templates import shaped

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


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_counts_and_lengths(tmp_path):
    path = write(
        tmp_path / "data.jsonl",
        {"prompt": "aa", "completion": "x", "instruction": "a"},
        {"prompt": "aa", "completion": "x"},
        {"prompt": "aa", "completion": "yyy"},
        {"prompt": "bbbb", "completion": ["x", "z"]},
        {"prompt": "", "completion": "x"},
    )
    report = check(path)
    assert not report.ok
    assert report.bad == (f"{path}:5: prompt is empty; expected a text.",)
    assert (report.path, report.format) == (str(path), "prompt_completion")
    assert (report.samples, report.answers, report.turns, report.instructions) == (4, 5, 1, 1)
    assert report.prompt_chars == Lengths(shortest=2, median=2, longest=4)
    assert report.answer_chars == Lengths(shortest=1, median=1, longest=3)
    assert (report.duplicate_prompts, report.conflicting_prompts) == (2, 1)


def test_a_good_file_is_ok(tmp_path):
    assert check(write(tmp_path / "data.jsonl", {"prompt": "a", "completion": "b"})).ok


def test_only_bad_records(tmp_path):
    report = check(write(tmp_path / "data.jsonl", {"prompt": "a", "completion": ""}))
    assert (report.samples, len(report.bad), report.turns) == (0, 1, 0)
    assert report.prompt_chars == Lengths()


def test_an_unreadable_file_raises(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        check(tmp_path / "nothing.jsonl")


TEXT = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^\*\*`(\w+)`\*\*.*?^```(?:jsonl|json)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLES = dict(EXAMPLE.findall(TEXT))


def test_every_builtin_reader_has_an_example():
    assert set(EXAMPLES) == set(READERS.builtin)


@pytest.mark.parametrize("format", sorted(EXAMPLES))
def test_examples_are_read(tmp_path, format):
    path = tmp_path / "TC" / "agnews" / "example"
    path.parent.mkdir(parents=True)
    (path.parent / "labels.json").write_text('["World", "Sports"]')
    path.write_text(EXAMPLES[format], encoding="utf-8")
    reading = read_all(path)
    assert reading.format == format
    assert reading.messages() == []
    assert len(reading.samples) == EXAMPLES[format].count("\n")


SHAPES = Path(__file__).parents[2] / "fixtures" / "shapes.txt"
ANSWERS = ["Lima", "N'Djamena", "Suva", "Muscat", "Lomé"]
MAPPED = {"prompt": "question", "answer": "reply"}

READ = {
    "openai.jsonl": ("messages", {}),
    "sharegpt.json": ("llava", {"turns": "all"}),
    "alpaca.json": ("alpaca", {}),
    "prompt_completion.jsonl": ("prompt_completion", {}),
    "trl_conversational.jsonl": ("prompt_completion", {}),
    "preference.jsonl": ("preference", {}),
    "squad.jsonl": (
        "prompt_completion",
        {"map": {"prompt": "question", "answers": "answers.text"}},
    ),
    "faq.csv": ("prompt_completion", {"map": MAPPED}),
    "excel.csv": ("prompt_completion", {}),
    "forum.tsv": ("prompt_completion", {}),
    "superni.json": ("superni", {}),
    "trace/train.json": ("prompt_completion", {"test": "trace/test.json"}),
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """The files of shapes.txt; Excel's begins with a byte order mark and has CRLF."""
    folder = tmp_path_factory.mktemp("shapes")
    for part in SHAPES.read_text(encoding="utf-8").removeprefix("==> ").split("\n==> "):
        name, _, text = part.partition(" <==\n")
        (folder / name).parent.mkdir(exist_ok=True)
        text = text.removesuffix("\n") + "\n"
        if name == "excel.csv":
            (folder / name).write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
        else:
            (folder / name).write_bytes(text.encode())
    return folder


@pytest.mark.parametrize("name", READ)
def test_a_shape_is_checked_read_and_learnable(shapes, name):
    if name.endswith(("csv", "tsv")):
        pytest.importorskip("datasets")
    format, options = READ[name]
    looked_at = {{"map": "columns"}.get(key, key): value for key, value in options.items()}
    if "test" in options:
        options = {"test": shapes / looked_at.pop("test")}
    report = check(shapes / name, **looked_at)
    assert report.ok, report.bad
    assert report.format == format
    assert (report.note is not None) == (format == "preference")
    task = load_task(TaskConfig(name="capitals", train=shapes / name, **options))
    chat = ChatFormat(shaped("chatml"), max_prompt_tokens=500)
    found = []
    for sample in (*task.train, *task.test):
        example = chat.encode_example(sample)
        text = chat.tokenizer.decode(example.answer_ids)
        assert text == f"{sample.answers[0]}<|im_end|>"
        found.append(sample.answers[0])
    wanted = [answer for answer in ANSWERS if name[:5] != "trace" or answer != "Muscat"]
    assert sorted(set(found) - {"Yes."}) == sorted(wanted)
    assert found.count("Yes.") == (5 if name == "sharegpt.json" else 0)


def test_the_use_of_tools_is_refused_with_every_record(shapes):
    report = check(shapes / "openai_tools.jsonl")
    assert (report.samples, len(report.bad)) == (0, 5)
    assert "lcia does not train the use of tools. Leave the record out." in report.bad[0]
