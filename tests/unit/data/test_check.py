"""`check` lists what is in a file and its bad records; docs/data.md is read as it says."""

import json
import re
from pathlib import Path

import pytest

from lcia.data import Lengths, check, read_all
from lcia.errors import DataError
from lcia.registry import READERS


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
    path = tmp_path / "example"
    path.write_text(EXAMPLES[format], encoding="utf-8")
    reading = read_all(path)
    assert reading.format == format
    assert reading.messages() == []
    assert len(reading.samples) == EXAMPLES[format].count("\n")
