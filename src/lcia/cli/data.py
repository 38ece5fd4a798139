"""``lcia data``: look at data files before learning from them."""

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

Format = Annotated[
    str | None, typer.Option("--format", help="See 'lcia ls readers'; default: recognised.")
]
Role = Annotated[list[str] | None, typer.Option("--role", help="Map a role: bot=assistant.")]
Images = Annotated[
    Path | None, typer.Option("--images", help="Folder of the images; default: the file's.")
]

Test = Annotated[
    Path | None, typer.Option("--test", help="Held-out samples; default: a fifth of the data.")
]
Scorer = Annotated[str, typer.Option("--scorer", help="See 'lcia ls scorers'.")]
LongestAnswer = Annotated[
    int,
    typer.Option("--max-new-tokens", help="Longest answer to generate, in tokens.", min=1),
]
Split = Annotated[
    str | None, typer.Option("--split", help="Part of a folder or of a hub's data set.")
]
Map = Annotated[
    list[str] | None, typer.Option("--map", help="Name columns: prompt=question,answer=reply.")
]


class Which(str, Enum):
    """Which answers of a conversation are learned."""

    all = "all"
    last = "last"


Turns = Annotated[
    Which | None, typer.Option("--turns", help="Answers of a conversation that are learned.")
]

data = typer.Typer(help="Check data files.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(data, name="data")


@data.callback()
def _group() -> None:
    """Check data files."""


@data.command()
def check(
    file: Annotated[Path, typer.Argument(help="A data file, a folder of them, or a hub id.")],
    reader: Format = None,
    role: Role = None,
    images: Images = None,
    split: Split = None,
    columns: Map = None,
    turns: Turns = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Report what a data file holds, and every record that cannot be used.

    Examples:

      lcia data check tickets.jsonl

      lcia data check chats.jsonl --role bot=assistant

      lcia data check faq.csv --map prompt=question,answer=reply
    """
    from lcia.cli.console import print_json, print_table
    from lcia.data import check as check_file
    from lcia.errors import DataError

    report = check_file(
        file,
        format=reader,
        roles=roles_of(role),
        images=images,
        split=split,
        columns=columns_of(columns),
        turns=turns and turns.value,
    )
    if as_json:
        print_json(asdict(report))
    else:
        prompt, answer = report.prompt_chars, report.answer_chars
        rows = [
            ["format", report.format],
            ["samples", str(report.samples)],
            ["prompt length", f"{prompt.shortest} – {prompt.longest}, median {prompt.median:g}"],
            ["answer length", f"{answer.shortest} – {answer.longest}, median {answer.median:g}"],
            ["instructions named", str(report.instructions)],
            ["repeated prompts", str(report.duplicate_prompts)],
            ["of these with another answer", str(report.conflicting_prompts)],
            ["records that cannot be used", str(len(report.bad))],
            *([["note", report.note]] if report.note else []),
            *([f"field not read: {name}", str(n)] for name, n in report.unread.items()),
        ]
        print_table(str(file), ["", "characters or count"], rows)
    if not report.ok:
        shown = list(report.bad[:20])
        hidden = len(report.bad) - len(shown)
        more = [f"... and {hidden} more."] if hidden else []
        raise DataError("\n".join([*shown, *more]))


def roles_of(mappings: list[str] | None) -> dict[str, str]:
    """Return role in the file to role, as ``--role`` names them.

    Raises:
        ConfigError: not of the form OLD=NEW.
    """
    from lcia.errors import ConfigError

    roles = {}
    for mapping in mappings or []:
        old, sign, new = mapping.partition("=")
        if not sign or not old or not new:
            raise ConfigError(f"--role {mapping}: expected OLD=NEW, for example bot=assistant.")
        roles[old] = new
    return roles


def columns_of(mappings: list[str] | None) -> dict[str, str | None]:
    """Return field to column, as ``--map`` names them; to None for a field to leave out.

    Raises:
        ConfigError: not of the form FIELD=COLUMN, or a field twice.
    """
    from lcia.errors import ConfigError

    columns: dict[str, str | None] = {}
    for mapping in (part for option in mappings or [] for part in option.split(",")):
        field, sign, column = (part.strip() for part in mapping.partition("="))
        if not sign or not field:
            raise ConfigError(
                f"--map {mapping}: expected FIELD=COLUMN, for example prompt=question."
            )
        if field in columns:
            raise ConfigError(f"--map {mapping}: '{field}' is mapped twice; expected it once.")
        columns[field] = column or None
    return columns
