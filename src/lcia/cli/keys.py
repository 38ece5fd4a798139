"""``lcia keys``: API keys of an assistant, each for what it is made for."""

from typing import Annotated

import typer

from lcia.cli.store import AsJson, StorePath

Name = Annotated[str, typer.Argument(help="Of the key: who uses it.")]

keys = typer.Typer(help="Make and revoke API keys.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(keys, name="keys")


@keys.callback()
def _keys() -> None:
    """Make and revoke API keys: 'lcia serve' and 'lcia gateway' heed them at once.

    chat: ask, and see the models. feedback: see receipts and say something about answers. learn:
    files, jobs and the inbox. admin: release, roll back, see metrics. None holds another. Once
    there is a key, nobody asks without one.
    """


@keys.command()
def add(
    store: StorePath,
    name: Name,
    scope: Annotated[
        list[str], typer.Option("--scope", help="chat, feedback, learn or admin; repeatable.")
    ],
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: what is stored does not give it back.

    Examples:

      lcia keys add assistant website --scope chat --scope feedback
    """
    from lcia.cli.console import console, print_json
    from lcia.learner import Store
    from lcia.serving.config import KeyRing
    from lcia.store import audit

    Store.open_unchecked(store)
    key = KeyRing(store).add(name, scope)
    audit.record(store, "key made", key=name, scopes=scope)
    if as_json:
        print_json({"name": name, "scopes": scope, "key": key})
        return
    console.print(key, markup=False, highlight=False, soft_wrap=True)


@keys.command("list")
def list_(store: StorePath, as_json: AsJson = False) -> None:
    """List the keys, those that were revoked too.

    Examples:

      lcia keys list assistant
    """
    from datetime import datetime

    from lcia.cli.console import print_json, print_table
    from lcia.learner import Store
    from lcia.serving.config import KeyRing

    Store.open_unchecked(store)
    known = KeyRing(store).keys
    if as_json:
        told = ("name", "scopes", "created_at", "revoked_at")
        print_json([{field: getattr(key, field) for field in told} for key in known])
        return

    def day(seconds: int | None) -> str:
        return "" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")

    rows = [
        [key.name, ", ".join(key.scopes), day(key.created_at), day(key.revoked_at)] for key in known
    ]
    columns = ["name", "scopes", "made", "revoked"]
    print_table(str(store), columns, rows, left=range(len(columns)))


@keys.command()
def revoke(store: StorePath, name: Name) -> None:
    """Let a key open nothing any more.

    Examples:

      lcia keys revoke assistant website
    """
    from lcia.cli.console import console
    from lcia.learner import Store
    from lcia.serving.config import KeyRing
    from lcia.store import audit

    Store.open_unchecked(store)
    KeyRing(store).revoke(name)
    audit.record(store, "key revoked", key=name)
    console.print(f"The key '{name}' opens nothing any more.", markup=False)
