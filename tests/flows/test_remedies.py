"""What messages tell people to do can be done: every command and option they name exists."""

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import lcia
from lcia.cli.main import app

SOURCE = Path(lcia.__file__).parent
COMMAND = get_command(app)

# Options of other programs that messages and generated files name.
FOREIGN = {
    "--cpu",  # accelerate launch
    "--delete",  # tar, find
    "--enable-lora",
    "--lora-modules",
    "--max-lora-rank",
    "--max-loras",
    "--no-deps",  # pip
    "--num_processes",
    "--num_machines",
    "--nproc_per_node",
    "--nproc-per-node",
    "--served-model-name",
}


def said(path):
    """The texts of a module that are no docstrings: f-strings with their holes as ``X``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "X" for part in node.values
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation | inside
        ):
            yield node.value


MESSAGES = sorted({(path, text) for path in SOURCE.rglob("*.py") for text in said(path)})


def verbs(command=COMMAND, names=()):
    """Every verb with its options."""
    for name, sub in getattr(command, "commands", {}).items():
        yield from verbs(sub, (*names, name))
    if not getattr(command, "commands", None):
        yield names, {option for p in command.params for option in (*p.opts, *p.secondary_opts)}


VERBS = dict(verbs())
OPTIONS = set().union(*VERBS.values()) | {"--help", "--version", "--debug", "--install-completion"}


def commands_named():
    for path, text in MESSAGES:
        for match in re.finditer(r"(?:^|['`(\s])lcia ((?:[a-z-]+)(?: [a-z-]+)*)", text):
            if text[match.start() : match.start() + 1] in "'`":
                yield path.name, match[1]


def options_named():
    for path, text in MESSAGES:
        if len(text.split()) >= 4 and path.name != "svg.py":  # whose custom properties look alike
            for option in re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text):
                yield path.name, option


@pytest.mark.parametrize(("module", "words"), sorted(set(commands_named())))
def test_every_command_a_message_names_exists(module, words):
    names = words.split()
    assert any(tuple(names[:n]) in VERBS for n in (1, 2)), f"{module}: lcia {words}"


@pytest.mark.parametrize(("module", "option"), sorted(set(options_named())))
def test_every_option_a_message_names_exists(module, option):
    assert option in OPTIONS | FOREIGN, f"{module}: {option}"


def test_options_that_messages_about_data_name_are_those_of_learn_and_of_data_check():
    data = {o for path, text in MESSAGES if "data" in path.parts for o in [*_options(text)]}
    named = data & OPTIONS
    assert named >= {"--role", "--map"}
    for verb in (("learn",), ("data", "check")):
        assert named | {"--format", "--images"} <= VERBS[verb]


def _options(text):
    return re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)


def test_mapping_a_role_as_told_makes_the_file_readable(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Hello"}]}\n'
        * 2
    )
    runner = CliRunner()
    first = runner.invoke(app, ["data", "check", str(path)])
    remedy = re.search(r"Map it with (--role \S+)\.", str(first.exception))[1]
    again = runner.invoke(app, ["data", "check", str(path), *remedy.split()])
    assert again.exit_code == 0, again.output
