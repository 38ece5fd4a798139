"""The file itself: encodings, line ends, broken JSON, and that no record gets lost."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcia.data import read, read_all
from lcia.errors import ConfigError, DataError


def record(prompt="Say hello.", **more):
    return {"prompt": prompt, "completion": "Hello!", **more}


def dump(*records):
    return "".join(json.dumps(value) + "\n" for value in records).encode()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.jsonl"


def message(path, content, **options):
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        dump(record("a"), record("b")),
        dump(record("a"), record("b")).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + dump(record("a"), record("b")),
        b"\n\n" + dump(record("a")) + b"\n  \n" + dump(record("b")) + b"\n",
        dump(record("a"), record("b")).rstrip(b"\n"),
        json.dumps([record("a"), record("b")]).encode(),
        json.dumps([record("a"), record("b")], indent=2).encode(),
        b"[\n" + json.dumps(record("a")).encode() + b",\n" + dump(record("b")) + b"]\n",
    ],
    ids=["plain", "crlf", "bom", "blank_lines", "no_newline", "list", "pretty", "list_of_lines"],
)
def test_harmless_differences_are_read(path, content):
    path.write_bytes(content)
    assert [sample.prompt for sample in read(path)] == ["a", "b"]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_every_text_survives_and_none_is_dropped(tmp_path_factory, prompts):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    lines = [json.dumps(record(prompt), ensure_ascii=False) for prompt in prompts]
    path.write_bytes("\n".join(lines).encode())
    assert [sample.prompt for sample in read(path)] == prompts


def test_line_separators_inside_a_text_do_not_end_a_line(path):
    path.write_bytes(json.dumps(record("a\u2028b\x85c"), ensure_ascii=False).encode() + b"\n")
    assert read(path)[0].prompt == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ": is empty; expected at least one record."),
        (b"\n \n", ": is empty; expected at least one record."),
        (b"\xef\xbb\xbf", ": is empty; expected at least one record."),
        (
            dump(record()).decode().encode("utf-16")[:-1],
            ":1: byte 99 of the file is not UTF-16, as its mark says: truncated data. Save the",
        ),
        (
            dump(record("a")) + b'{"prompt": "\xe9", "completion": "x"}\n',
            ":2: byte 13 is not UTF-8; expected UTF-8. Save the file as UTF-8.",
        ),
        (
            dump(record("a"), record("b")) + b'{"prompt": "c" "x"}\n',
            ":3: not valid JSON: Expecting ',' delimiter at column 16.",
        ),
        (b'{"prompt": "c\n' + dump(record("a")), ":1: not valid JSON: Unterminated string"),
        (b'{"prompt": "c', ":1: not valid JSON: Unterminated string"),
        (b"[\n" + dump(record("a")) + b"\n", ":4: not valid JSON: Expecting ',' delimiter"),
        (b"{\n" + b'"Definition": "x",\n "Instances": [\n', ":4: not valid JSON: Expecting value"),
        (dump(record("a")) + b"[1]\n", ":2: found a list; expected {"),
        (dump(record("a")) + b"17\n", ":2: found 17; expected {"),
        (b"[" * 100_000, ":1: lists and objects stand in each other too deeply"),
        (b'{"id": ' + b"9" * 6000 + b"}", ":1: a number has over 4300 digits; write it as a text."),
        (dump(record("a")) + b"\0" * 4096, ": is filled with NUL bytes from line 2 on, as a crash"),
        (
            gzip.compress(gzip.compress(dump(record("a")), mtime=0), mtime=0),
            ": is packed twice. Unpack it once.",
        ),
        (b"null", ": found no JSON object, which fits no format; expected one of messages: {"),
        (b"[]", ": has no records; expected at least one."),
        (dump({"text": "a"}), ": found records with the keys text, which fits no format; expected"),
        (
            dump({f"k{i:02}": i for i in range(30)}),
            ": found records with the keys k00, k01, k02, k03, k04, k05, k06, k07 and 22 more, ",
        ),
        (
            dump(record("a", id="x"), record("b", id="x")),
            ":2: id 'x' is also that of 1; expected another.",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(path, content, expected):
    text = message(path, content)
    assert text.startswith(f"{path}{expected}")
    assert "\n" not in text


def test_numbers_given_to_records_without_an_id_take_no_other_records_id(path):
    path.write_bytes(dump(record("a"), record("b", id="1"), record("c", id=4), record("d")))
    assert [sample.id for sample in read(path)] == ["1@1", "1", "4", "4@4"]


def test_a_web_address_is_called_one():
    for address in ("https://example.org/a.jsonl", "http://example.org/a.jsonl"):
        with pytest.raises(DataError, match=f"^{address}: is a web address; expected a file"):
            read(address)


def test_line_17_of_many_is_named(path):
    lines = dump(*(record(str(i)) for i in range(40))).splitlines(keepends=True)
    lines[16] = b'{"prompt": "16", "completion": \n'
    assert message(path, b"".join(lines)).startswith(f"{path}:17: not valid JSON: Expecting value")


def test_all_bad_records_are_counted_and_twenty_shown(path):
    bad = [{"prompt": str(i)} for i in range(30)]
    lines = message(path, dump(record("good"), *bad)).splitlines()
    assert lines[0] == f"{path}: 30 of 31 records cannot be used; the first 20:"
    assert lines[1:] == [
        f"{path}:{line}: completion is missing or null; expected a text." for line in range(2, 22)
    ]
    two = message(path, dump(record("good"), *bad[:2])).splitlines()
    assert two[0] == f"{path}: 2 of 3 records cannot be used; all:"
    assert len(two) == 3


def test_the_majority_decides_the_format(path):
    path.write_bytes(dump({"instruction": "a", "output": "b"}, record("a"), record("b")))
    reading = read_all(path)
    assert reading.format == "prompt_completion"
    assert reading.messages() == [f"{path}:1: prompt is missing or null; expected a text."]


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_every_record_is_either_a_sample_or_a_problem(tmp_path_factory, good):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_bytes(dump(*(record(str(i)) if g else {"prompt": i} for i, g in enumerate(good))))
    reading = read_all(path, format="prompt_completion")
    assert [sample.id for sample in reading.samples] == [
        str(i) for i, g in enumerate(good, start=1) if g
    ]
    assert [problem.where for problem in reading.problems] == [
        f":{i}" for i, g in enumerate(good, start=1) if not g
    ]


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file\."):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="is a folder without data files; expected a file"):
        read(tmp_path)


def test_wrong_options(path):
    path.write_bytes(dump(record()))
    with pytest.raises(ConfigError, match=r"'alpacca' is not one of the readers.*Nearest: alpaca"):
        read(path, format="alpacca")
    with pytest.raises(ConfigError, match="'bot' is mapped to 'robot'; expected"):
        read(path, roles={"bot": "robot"})
