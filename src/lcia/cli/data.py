"""``lcia data``: look at data files before learning from them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

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
    reader: Annotated[
        str | None, typer.Option("--format", help="See 'lcia ls readers'; default: recognised.")
    ] = None,
    role: Annotated[
        list[str] | None, typer.Option("--role", help="Map a role: bot=assistant.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of the pictures; default: FILE's.")
    ] = None,
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

    roles = dict(_pair(mapping) for mapping in role or [])
    report = check_file(file, format=reader, roles=roles, images=images)
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
        ]
        print_table(str(file), ["", "characters or count"], rows)
    if not report.ok:
        shown = list(report.bad[:20])
        hidden = len(report.bad) - len(shown)
        more = [f"... and {hidden} more."] if hidden else []
        raise DataError("\n".join([*shown, *more]))


def _pair(mapping: str) -> tuple[str, str]:
    from lcia.errors import ConfigError

    old, sign, new = mapping.partition("=")
    if not sign:
        raise ConfigError(f"--role {mapping}: expected OLD=NEW, for example bot=assistant.")
    return old, new
