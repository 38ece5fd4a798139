"""The option that says where jobs, receipts and feedback are."""

from typing import Annotated

import typer

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="LCIA_DATABASE",
        help="URL of jobs, receipts and feedback; default: assistant.db in the folder.",
    ),
]
