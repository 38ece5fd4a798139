"""``lcia data``: look at data files before learning from them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

Format = Annotated[
    str | None, typer.Option("--format", help="See 'lcia ls readers'; default: recognised.")
]
Role = Annotated[list[str] | None, typer.Option("--role", help="Map a role: bot=assistant.")]
Images = Annotated[
    Path | None, typer.Option("--images", help="Folder of the pictures; default: the file's.")
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
    file: Annotated[Path, typer.Argument(help="A data file.")],
    reader: Format = None,
    role: Role = None,
    images: Images = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Report what a data file holds, and every record that cannot be used.

    Examples:

      lcia data check tickets.jsonl

      lcia data check chats.jsonl --role bot=assistant
    """
    from lcia.cli.console import print_json, print_table
    from lcia.data import check as check_file
    from lcia.errors import DataError

    report = check_file(file, format=reader, roles=roles_of(role), images=images)
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
