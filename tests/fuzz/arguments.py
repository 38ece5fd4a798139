"""Command lines: any verb with any of its options and arguments, most of them wrong."""

import click
from typer.main import get_command

from fuzz.values import TEXTS
from lcia.cli.main import app

WORDS = (
    *("-1", "0", "1", "2", "999999999999999999999", "1e5", "nan", "inf", "-inf", "0.5", "--", "-"),
    *(
        "a=b",
        "=",
        "a=",
        "=b",
        "bot=assistant",
        "bot=bot",
        "colours",
        "g1",
        "g2",
        "g9",
        "cpu",
        "vllm",
    ),
    *("messages", "llava", "exact_match", "rougeL", "svd", "first_line", "infer", "readers"),
    *("127.0.0.1", "0.0.0.0", "http://[", "http://localhost:1", "file:///etc/passwd", "\udcff"),
)
SERVERS = ("serve", "gateway")
"""They would wait for clients: they are given no store."""


def verbs(command=None, names=()):
    """Every verb, its names before it."""
    command = command or get_command(app)
    for name, sub in getattr(command, "commands", {}).items():
        yield from verbs(sub, (*names, name))
    if not getattr(command, "commands", None):
        yield names, command


VERBS = list(verbs())


def line(random, place):
    """The arguments of a command; ``place`` names paths."""
    if random.random() < 0.05:
        words = [random.choice(place.words(random)) for _ in range(random.randrange(4))]
        return [word for word in words if word not in (*SERVERS, "demo")]
    names, command = random.choice(VERBS)
    chosen = list(names)
    for parameter in command.params:
        wanted = parameter.required if random.random() < 0.9 else random.random() < 0.3
        if parameter.name in ("debug", "help") or not (wanted or random.random() < 0.2):
            continue
        if isinstance(parameter, click.Option):
            option = random.choice([*parameter.opts, *parameter.secondary_opts])
            chosen += [option] if parameter.is_flag else [option, _value(random, names, place)]
        else:
            chosen.append(_value(random, names, place))
    if names in (("run",), ("demo",)) and "--dry-run" not in chosen:
        chosen.append("--dry-run")
    if random.random() < 0.05:
        chosen.insert(random.randrange(len(chosen) + 1), random.choice(TEXTS).replace("\x00", ""))
    return chosen


def _value(random, names, place):
    if names[0] in SERVERS:
        return random.choice([p for p in place.paths if p != str(place.store)] + list(WORDS))
    if random.random() < 0.45:
        return str(place.store)
    return random.choice(place.words(random))
