"""``lcia models``: models that ship inside PyPI wheels."""

from typing import Annotated

import typer

models = typer.Typer(help="Show and prepare embedded models.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(models, name="models")


@models.callback()
def show(
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
