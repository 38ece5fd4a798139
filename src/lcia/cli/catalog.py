"""``lcia ls``: what can be chosen by name."""

from enum import Enum
from typing import Annotated

import typer


class Kind(str, Enum):
    """What ``lcia ls`` lists."""

    methods = "methods"
    rules = "rules"
    readers = "readers"
    scorers = "scorers"
    similarities = "similarities"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
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
