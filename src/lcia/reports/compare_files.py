"""A comparison as ``compare.md``, ``compare.json`` and ``compare.html``."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lcia.experiments.comparison import Comparison, LabelSummary, Spread
from lcia.files import write_json, write_text
from lcia.reports.compare_page import render_comparison
from lcia.reports.tables import TextTable, comparison_tables, formulas, runs_table, settings_table


def write_comparison(comparison: Comparison, folder: str | Path, *, title: str) -> dict[str, Path]:
    """Write the comparison in three formats.

    Args:
        comparison: what to write.
        folder: where to; made.
        title: heading of the page.

    Returns:
        Format (``md``, ``json``, ``html``) to file. The same runs give the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"compare.{kind}" for kind in ("md", "json", "html")}
    write_text(files["md"], as_markdown(comparison, title=title))
    write_json(files["json"], as_json(comparison))
    write_text(files["html"], render_comparison(comparison, title=title))
    return files


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return everything in the comparison as JSON values."""
    return {
        "baseline": comparison.baseline,
        "warnings": list(comparison.warnings),
        "orders": {order: list(tasks) for order, tasks in comparison.orders.items()},
        "formulas": formulas(comparison),
        "labels": [_label(label) for label in comparison.labels],
    }


def as_markdown(comparison: Comparison, *, title: str) -> str:
    """Return the tables, orders, differing settings and formulas as Markdown."""
    parts = [f"# {title}", *(f"- {line}" for line in comparison.warnings)]
    tables = [*comparison_tables(comparison), runs_table(comparison), settings_table(comparison)]
    parts += [markdown_table(table) for table in tables if table.rows]
    orders = (f"- {order}: {', '.join(tasks)}" for order, tasks in comparison.orders.items())
    parts += ["## Orders", "\n".join(orders)]
    names = (f"- {name}: {formula}" for name, formula in formulas(comparison).items())
    parts += ["## Formulas", "\n".join(names)]
    return "\n\n".join(parts) + "\n"


def _label(label: LabelSummary) -> dict[str, Any]:
    return {
        "label": label.label,
        "method": label.method,
        "settings": dict(label.runs[0].settings),
        "measures": _spreads(label.measures),
        "differences": _spreads(label.differences),
        "forgetting_ratio": label.forgetting_ratio,
        "share_of_multitask": label.share_of_joint,
        "runs": [
            {
                "seed": run.seed,
                "order": run.order,
                "metrics": dict(run.metrics),
                "matrix": run.matrix.to_json(),
                "environment": dict(run.environment),
            }
            for run in label.runs
        ],
    }


def _spreads(spreads: Mapping[str, Spread | None]) -> dict[str, Any]:
    return {
        name: None if spread is None else dataclasses.asdict(spread)
        for name, spread in spreads.items()
    }


def markdown_table(table: TextTable, *, level: int = 2) -> str:
    """Return a table as Markdown under a heading of that level."""
    return "\n".join([f"{'#' * level} {table.title}", "", *_markdown_lines(table)])


def _markdown_lines(table: TextTable) -> Iterator[str]:
    if table.note:
        yield f"{table.note}\n"
    yield "| " + " | ".join(table.columns) + " |"
    yield "| --- " + "| ---: " * (len(table.columns) - 1) + "|"
    for i, row in enumerate(table.rows):
        cells = [f"**{c}**" if (i, j) in table.best else c for j, c in enumerate(row)]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
