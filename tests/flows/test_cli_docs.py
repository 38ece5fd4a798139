"""docs/cli.md names every verb and every option, and its examples are streams that load."""

import re
from pathlib import Path

import pytest
import typer
import yaml

from lcia.cli.main import app
from lcia.config import parse_config
from lcia.config.stream import StreamConfig

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def verbs(command, path=()):
    """Yield the words of every verb with its parameters."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from verbs(inner, (*path, name))
    if path and (not hasattr(command, "commands") or command.invoke_without_command):
        yield " ".join(path), [parameter.opts for parameter in command.params]


VERBS = [
    (verb, options)
    for verb, options in verbs(typer.main.get_command(app))
    if verb not in ("groups", "data", "inbox")
]


@pytest.mark.parametrize(("verb", "options"), VERBS, ids=[verb for verb, _ in VERBS])
def test_every_verb_and_option_is_on_the_page(verb, options):
    found = re.search(rf"\$ lcia {verb} --help\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"docs/cli.md lacks a block for lcia {verb}"
    block = found[1]
    assert f"Usage: lcia {verb} " in block
    for name in (option for names in options for option in names if option.startswith("-")):
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", block), (
            f"run python docs/cli_page.py: {name}"
        )


def test_every_key_of_a_stream_file_is_on_the_page():
    keys = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    assert keys >= set(StreamConfig.model_fields)


def test_the_example_of_methods_gives_the_folders_it_promises():
    (example,) = re.findall(r"```yaml\n(methods:.*?)```", PAGE, re.DOTALL)
    tree = {"model": "m", "stream": "builtin:skills", "output": "out", **yaml.safe_load(example)}
    config = parse_config(StreamConfig, tree, where="docs/cli.md")
    labels = list(config.variants())
    assert "lcia-fixed99-t30" in labels
    for variant in config.variants().values():
        variant.check()
