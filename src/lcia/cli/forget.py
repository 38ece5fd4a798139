"""``lcia forget``: remove what somebody said, as far as it can be removed."""

from typing import Annotated

import typer

from lcia.cli.serve import DatabaseUrl
from lcia.cli.store import StorePath
from lcia.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(forget)


def forget(
    store: StorePath,
    receipt: Annotated[
        str | None, typer.Option(help="Id of an answer: its receipt and what was said about it.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Name of a key: all that was asked, said or taught with it.")
    ] = None,
    database: DatabaseUrl = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Remove receipts and feedback, and the samples that were made of them.

    A new version leaves the samples out of what it remembers and of held-out samples. What its
    adapters learned stays, and is named; so are earlier versions that still hold samples.

    Examples:

      lcia forget assistant --receipt chatcmpl-5f0c

      lcia forget assistant --key anna
    """
    if (receipt is None) == (key is None):
        raise ConfigError("Expected either --receipt ID or --key NAME.")
    from lcia.serving import check_installed

    check_installed("live")
    from lcia.cli.console import console, print_json
    from lcia.learner import Store
    from lcia.live.database import Database
    from lcia.live.feedback.forgetting import forget as remove

    opened = Store.open(store)
    done = remove(opened, Database(store, database), receipt=receipt, key=key)
    if as_json:
        print_json(vars(done))
        return
    lines = [f"{done.receipts} receipts, {done.entries} entries of the inbox are gone."]
    lines.append(f"{done.files} files of training samples are gone or rewritten.")
    if done.version is not None:
        lines.append(f"Version {done.version} is current: {done.samples} samples are gone from it.")
    if done.learned:
        lines.append(f"Learned from them, and still in use: {', '.join(done.learned)}.")
    if done.remains:
        named = ", ".join(map(str, done.remains))
        lines.append(f"Still in versions {named}: lcia prune {store} --keep-last 1 --yes")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
