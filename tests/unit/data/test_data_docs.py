"""The examples of docs/data.md are read as it says."""

import re
from pathlib import Path

import pytest

from lcia.data import read_all
from lcia.registry import READERS

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
