"""What the command line prints, whatever stands in names and files."""

import json
import os

import pytest

from fuzz.command import run

RECORD = {"prompt": "a", "completion": "b"}


def test_a_name_that_no_terminal_can_show_is_escaped(tmp_path):
    path = tmp_path / "\udcff.jsonl"
    path.write_text(json.dumps(RECORD))
    ended = run("data", "check", str(path))
    assert ended.code == 0, ended.err
    assert "\\udcff" in ended.out


def test_a_path_that_is_too_long_is_one_line():
    ended = run("versions", "a" * 300)
    assert ended.code == 2
    assert ended.err.endswith(": cannot be used: File name too long.\n")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_key_of_a_data_file_cannot_steer_the_terminal(tmp_path, options):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({**RECORD, "\x1b[2J\x85": "x"}), encoding="utf-8")
    ended = run("data", "check", str(path), *options)
    assert ended.code == 0
    assert not {"\x1b", "\x85"} & set(ended.out + ended.err)
    assert "[2J" in ended.out


def test_a_pipe_as_a_data_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    ended = run("data", "check", str(tmp_path / "pipe"))
    assert ended.code == 2
    assert "it is a pipe or a device. Write its content to a file first." in ended.err
