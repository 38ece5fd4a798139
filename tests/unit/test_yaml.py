"""Configuration that is no configuration: one line that says where, whatever YAML makes of it."""

import os

import pytest

from lcia.config.parsing import load_yaml, parse_config
from lcia.config.stream import StreamConfig
from lcia.errors import ConfigError, printable

BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nx: !!int foo", "expected a value of type int, found 'foo' in line 2, column 4."),
        ("x: !!bool maybe", "expected a value of type bool, found 'maybe' in line 1"),
        ("x: !!timestamp 1", "expected a value of type timestamp, found '1'"),
        ("x: 2020-13-45", "expected a value of type timestamp, found '2020-13-45'"),
        ("seed: " + "9" * 5000, "expected a value of type int, found '9999"),
        ('x: !!python/object/apply:os.system ["true"]', "could not determine a constructor for"),
        ("seed: 1\nseed: 2", "the key 'seed' stands twice in one mapping in line 2, column 1."),
        ("training: {a: 1, a: 2}", "the key 'a' stands twice in one mapping"),
        ("1: 2", "the key 1 is no text. Put it in quotes."),
        ("training: {on: 2}", "the key True is no text. Put it in quotes."),
        ("methods: &a [*a]", "is nested more than 50 deep."),
        ("x: " + "[" * 100_000, "brackets are nested more than 50 deep in line 1"),
        ("x: " + "[" * 60 + "]" * 60, "brackets are nested more than 50 deep in line 1"),
        ("- " * 2000 + "x", "is nested more than 50 deep."),
        (BOMB, "holds more than 100,000 values, those behind aliases counted each time."),
        ("? [a, b]\n: c", "found unhashable key in line 1"),
        ("x: {", "is not YAML: expected the node content, but found '<stream end>' in line 1"),
    ],
)
def test_yaml_that_cannot_be_used_is_told_in_one_line(tmp_path, text, said):
    path = tmp_path / "stream.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message
    assert len(message) < 300


def test_a_merged_key_may_be_overridden(tmp_path):
    path = tmp_path / "stream.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")
    assert load_yaml(path)["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("value", ["!!int foo", "&a [*a]", "{1: 2}", "[", "2020-13-45"])
def test_a_value_of_set_is_read_as_carefully(value):
    with pytest.raises(ConfigError, match="--set x="):
        parse_config(StreamConfig, {}, where="stream", overrides=[f"x={value}"])


def test_a_file_that_is_not_utf8_is_told_with_its_line(tmp_path):
    path = tmp_path / "stream.yaml"
    path.write_bytes("model: x\noutput: größe\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"stream.yaml:2: byte 20 of the file is not UTF-8"):
        load_yaml(path)


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = tmp_path / "stream.yaml"
    path.write_text("\ufeffseed: 1\n", encoding="utf-8")
    assert load_yaml(path) == {"seed": 1}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        ConfigError, match=r"it is a pipe or a device\. Write its content to a file"
    ):
        load_yaml(tmp_path / "pipe")


def test_what_stands_in_a_file_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\x00\r\x85\té\n") == "a\\x1b[2Jb\\x00\\x0d\\x85\té\n"
    long = printable("x" * 10_000 + ": expected y.\nz")
    assert len(long) < 1_700
    assert long.endswith("x: expected y.\nz")


def test_a_stream_without_any_seed_is_refused():
    tree = {"model": "m", "stream": "builtin:skills", "output": "out", "seeds": []}
    with pytest.raises(ConfigError, match=r"stream: seeds is .*at least 1 item"):
        parse_config(StreamConfig, tree, where="stream")
