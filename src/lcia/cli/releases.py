"""``lcia releases``: versions and refused candidates, what the gate found, and who answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcia.cli.serve import DatabaseUrl
from lcia.cli.store import AsJson, StorePath

if TYPE_CHECKING:
    from lcia.live.releases.listing import Releases

Number = Annotated[int, typer.Argument(help="See 'lcia releases list'.")]
Reason = Annotated[str | None, typer.Option(help="Why.")]

releases = typer.Typer(help="List, show, promote and roll back releases.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(releases, name="releases")


@releases.callback()
def _releases() -> None:
    """List, show, promote and roll back releases: versions, and candidates that were refused."""


@releases.command("list")
def list_(store: StorePath, database: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """List versions and refused candidates, the newest first.

    Examples:

      lcia releases list assistant
    """
    from lcia.cli.console import number, print_json, print_table

    found = _opened(store, database).listed()
    if as_json:
        print_json(found)
        return
    rows = [
        [
            str(one["version"]),
            one["state"],
            one["task"] or one["note"] or "",
            {True: "passed", False: "refused", None: "not asked"}[one["passed"]],
            number(one["average_accuracy"]),
            one["reason"] or "",
        ]
        for one in found
    ]
    columns = ["", "state", "task", "gate", "Avg.ACC", "released because"]
    print_table(str(store), columns, rows, left=(0, 1, 2, 3, 5))


@releases.command()
def show(
    store: StorePath, release: Number, database: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Show what the gate found in a release, check by check, and how its canary went.

    Examples:

      lcia releases show assistant 7
    """
    from lcia.cli.console import console, print_json
    from lcia.cli.learn import gate_line

    found = _opened(store, database).get(release)
    if as_json:
        print_json(found)
        return
    task = found["task"] or found["note"] or ""
    console.print(f"Release {release}, {task}: {found['state']}.", markup=False)
    for check in found["checks"]:
        console.print(gate_line(check), markup=False)
    if not found["checks"]:
        console.print("The gate checked nothing.", markup=False)
    if found["reason"]:
        console.print(f"Released all the same: {found['reason']}", markup=False)
    if (canary := found["canary"]) and canary["answers"]:
        console.print(_canary_line(canary), markup=False)


@releases.command()
def promote(
    store: StorePath,
    release: Number,
    reason: Reason = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take a candidate that the gate refused.")
    ] = False,
    database: DatabaseUrl = None,
) -> None:
    """Let a release answer everything: one under trial, an earlier version, a refused candidate.

    Examples:

      lcia releases promote assistant 7

      lcia releases promote assistant 8 --force --reason "its held-out samples are out of date"
    """
    from lcia.cli.console import console

    found = _opened(store, database).promote(release, reason=reason, force=force)
    console.print(f"{store}: release {release} is {found['state']}.", markup=False)


@releases.command()
def rollback(
    store: StorePath, release: Number, reason: Reason = None, database: DatabaseUrl = None
) -> None:
    """Go back to an earlier release; nothing is deleted.

    Examples:

      lcia releases rollback assistant 6
    """
    from lcia.cli.console import console

    _opened(store, database).roll_back(release, reason=reason)
    console.print(f"{store}: release {release} is current.", markup=False)


def _opened(store: Path, database: str | None) -> "Releases":
    """Open the releases; without a database there never was a canary."""
    from lcia.serving import check_installed

    check_installed("live")
    from lcia.learner import Store
    from lcia.live.database import NAME, Database
    from lcia.live.releases.canary import Canaries
    from lcia.live.releases.listing import Releases

    opened = Store.open_unchecked(store)
    if database is None and not (store / NAME).exists():
        return Releases(opened)
    return Releases(opened, Canaries(Database(store, database)))


def _canary_line(canary: dict[str, Any]) -> str:
    new, old = (canary["counts"][side] for side in ("version", "before"))
    names = {"failed": "failed", "refused": "refusals", "thumbs_down": "thumbs down"}
    told = ", ".join(
        f"{names[k]} {new[k]} of {new['answers']} against {old[k]} of {old['answers']}"
        for k in names
    )
    ended = f": {canary['why']}" if canary["why"] else ""
    return f"Canary beside version {canary['before']} {canary['state']}{ended}; {told}."
