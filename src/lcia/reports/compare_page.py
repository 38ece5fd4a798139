"""A comparison as ``compare.md``, ``compare.json`` and one self-contained HTML page."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcia.experiments.comparison import Comparison, LabelSummary, Spread
from lcia.files import write_json, write_text
from lcia.reports.html import heat_rows, templates
from lcia.reports.tables import (
    TextTable,
    comparison_tables,
    formulas,
    runs_table,
    settings_table,
    spread_text,
)

if TYPE_CHECKING:
    from lcia.reports.compare_plots import Style


def render_comparison(comparison: Comparison, *, title: str) -> str:
    """Return the page as text.

    Args:
        comparison: what to show; everything in it is escaped.
        title: heading of the page.
    """
    from lcia.reports.compare_plots import style_of

    styles = {label.label: style_of(i) for i, label in enumerate(comparison.labels)}
    tables = comparison_tables(comparison)
    return (
        templates()
        .get_template("compare.html")
        .render(
            title=title,
            comparison=comparison,
            styles=styles,
            scores=tables[0],
            tables=tables[1:],
            trade_off=_trade_off(comparison),
            orders=list(_orders(comparison)),
            betas=list(_betas(comparison, styles)),
            closing=[table for table in _closing(comparison) if len(table.columns) > 1],
            formulas=formulas(comparison),
            environment=comparison.runs[0].environment,
        )
    )


def _closing(comparison: Comparison) -> Iterator[Any]:
    yield runs_table(comparison)
    yield settings_table(comparison)


def _trade_off(comparison: Comparison) -> str | None:
    from lcia.reports.compare_plots import draw_trade_off

    names = ("forgetting", "average_accuracy")
    if all(None in [label.measures[name] for name in names] for label in comparison.labels):
        return None
    note = "Average accuracy over forgetting, one point a label"
    return _svg(draw_trade_off, comparison, key="trade", label=note, size=(7.4, 3.9))


def _orders(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield what is shown of each order: scores over time, and a matrix a label."""
    from lcia.reports.compare_plots import draw_mean_scores, draw_task

    for k, (order, tasks) in enumerate(comparison.orders.items()):
        charts = [
            _svg(draw_task, comparison, order, number, key=f"o{k}t{number}", label=task)
            for number, task in enumerate(tasks, 1)
        ]
        mean = _svg(
            draw_mean_scores,
            comparison,
            order,
            key=f"o{k}mean",
            label="Mean score over the tasks learned so far",
            size=(7.4, 2.9),
        )
        yield {
            "name": order,
            "tasks": tasks,
            "mean": mean,
            "charts": list(zip(tasks, charts, strict=True)),
            "matrices": [m for label in comparison.labels if (m := _matrix(label, order))],
        }


def _matrix(label: LabelSummary, order: str) -> dict[str, Any] | None:
    matrix = label.matrix(order)
    if matrix is None:
        return None
    return {
        "label": label.label,
        "runs": sum(run.order == order for run in label.runs),
        "rows": heat_rows(matrix),
        "score": spread_text(label.measures["average_accuracy"], "percent"),
    }


def _betas(comparison: Comparison, styles: dict[str, "Style"]) -> Iterator[dict[str, Any]]:
    """Yield the balance weight over the steps of the first run of each label that averages."""
    from lcia.reports.plots import draw_beta

    for label in comparison.labels:
        run = label.runs[0]
        steps = run.steps() if run.metrics["beta_mean"] is not None else ()
        if steps:
            svg = _svg(
                draw_beta,
                steps,
                key=f"beta{styles[label.label].index}",
                label=f"Balance weight of {label.label}",
                size=(4.4, 2.3),
            )
            yield {"label": label.label, "seed": run.seed, "order": run.order, "svg": svg}


def _svg(
    draw: Any, *data: Any, key: str, label: str, size: tuple[float, float] = (3.7, 2.0)
) -> str:
    from markupsafe import Markup

    from lcia.reports.plots import inline_svg

    return Markup(inline_svg(draw, *data, key=key, label=label, size=size))


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
