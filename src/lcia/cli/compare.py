"""``lcia compare``: methods against each other; ``lcia report``: a page about an assistant."""

from pathlib import Path
from typing import Annotated

import typer

from lcia.cli.run import AsJson
from lcia.cli.store import StorePath


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(compare)
    app.command()(report)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Outputs of 'lcia run', folders of single runs, or results.jsonl."),
    ],
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", help="Label to take differences from; default: the first."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for compare.md, compare.json, compare.html."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", help="File results.jsonl (or .gz): what is read of each run."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare finished runs of one stream: mean ± deviation by label, and paired differences.

    Runs are paired by seed and order. What is not finished is left out and named.

    Examples:

      lcia compare runs/news -o runs/news

      lcia compare runs/rules runs/methods --baseline sequential -o tables/news

      lcia compare runs/news --results studies/news/results.jsonl
    """
    from lcia.cli.console import console, print_json, print_table
    from lcia.experiments.comparison import compare as compare_runs
    from lcia.experiments.finished import find_runs, write_results
    from lcia.reports.compare_page import as_json as in_json
    from lcia.reports.compare_page import write_comparison
    from lcia.reports.tables import comparison_tables, formulas

    found, warnings = find_runs(runs)
    comparison = compare_runs(found, baseline=baseline, warnings=warnings)
    if output is not None:
        files = write_comparison(comparison, output, title=output.resolve().name)
    if results is not None:
        write_results(results, found)
    if as_json:
        print_json(in_json(comparison))
        return
    for line in warnings:
        console.print(f"Mind: {line}", markup=False, soft_wrap=True)
    for table in comparison_tables(comparison):
        console.print()
        print_table(table.title, table.columns, table.rows, bold=table.best)
        console.print(table.note, style="dim", markup=False, soft_wrap=True)
    console.print()
    print_table("Formulas", ["", ""], list(formulas(comparison).items()), left=(0, 1))
    if output is not None:
        console.print(f"\nPage: {files['html']}", markup=False, soft_wrap=True)


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
