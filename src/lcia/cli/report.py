"""``lcia report``: one self-contained page about an assistant."""

from pathlib import Path
from typing import Annotated

import typer

from lcia.cli.store import StorePath


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(report)


def report(
    store: StorePath,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; default: STORE/../report.html.")
    ] = None,
) -> None:
    """Write a report of an assistant as one HTML file.

    Examples:

      lcia report runs/demo/lcia-seed0/assistant -o report.html
    """
    from lcia.cli.console import console
    from lcia.learner import Store
    from lcia.reports.collect import report_of
    from lcia.reports.html import write_report

    opened = Store.open(store)
    method = str(opened.config.method["name"])
    page = output or store.parent / "report.html"
    write_report(report_of({method: opened}, title=store.resolve().name), page)
    console.print(f"Report: {page}", markup=False)
