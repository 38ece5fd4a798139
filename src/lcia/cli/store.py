"""``lcia versions`` and ``lcia rollback``: the history of an assistant."""

from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
StorePath = Annotated[Path, typer.Argument(help="An assistant's folder.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(versions)
    app.command()(rollback)
    app.command()(verify)


def versions(store: StorePath, as_json: AsJson = False) -> None:
    """List the versions of an assistant.

    Examples:

      lcia versions assistant
    """
    from lcia.cli.console import number, print_json, print_table
    from lcia.learner import Store

    opened = Store.open(store)
    current = opened.current.number
    records = [_record(opened.version(n).manifest, current=current) for n in opened.versions()]
    if as_json:
        print_json(records)
        return
    rows = [
        [
            f"{'*' if record['current'] else ' '} {record['version']}",
            record["task"] or record["note"] or "(empty)",
            record["group"] or "",
            number(record["average_accuracy"]),
        ]
        for record in records
    ]
    print_table(str(store), ["version", "task", "group", "Avg.ACC"], rows, left=(0, 1, 2))


def rollback(
    store: StorePath, version: Annotated[int, typer.Argument(help="See 'lcia versions'.")]
) -> None:
    """Make an earlier version the current one; nothing is deleted.

    Examples:

      lcia rollback assistant 2
    """
    from lcia.cli.console import console
    from lcia.learner import Store

    Store.open(store).roll_back(version)
    console.print(f"{store}: version {version} is current.", markup=False)


def verify(store: StorePath) -> None:
    """Compare every adapter with the checksum it was stored with.

    Examples:

      lcia verify assistant
    """
    from lcia.cli.console import console
    from lcia.errors import StoreError
    from lcia.learner import Store

    if problems := Store.open(store).verify():
        raise StoreError("\n".join(problems))
    console.print(f"{store}: every adapter is as it was stored.", markup=False)


def _record(manifest: Any, *, current: int) -> dict[str, Any]:
    return {
        "version": manifest["version"],
        "parent": manifest["parent"],
        "task": manifest["task"],
        "note": manifest.get("note"),
        "group": manifest.get("group"),
        "average_accuracy": manifest.get("metrics", {}).get("average_accuracy"),
        "current": manifest["version"] == current,
    }
