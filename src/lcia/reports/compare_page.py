"""A comparison as one self-contained HTML page."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lcia.experiments.comparison import Comparison, LabelSummary
from lcia.reports.html import heat_rows, templates
from lcia.reports.tables import (
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

    from lcia.reports.svg import inline_svg

    return Markup(inline_svg(draw, *data, key=key, label=label, size=size))
