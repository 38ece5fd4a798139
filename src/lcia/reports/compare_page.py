"""A comparison drawn, as ``compare.md``, ``compare.json`` and one self-contained HTML page."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from lcia.evaluation.matrix import AccuracyMatrix
from lcia.experiments.comparison import Comparison, LabelSummary, Spread
from lcia.files import write_json, write_text
from lcia.reports.html import heat_rows, templates
from lcia.reports.plots import MUTED, SERIES, printable, spread_out
from lcia.reports.tables import (
    TextTable,
    comparison_tables,
    formulas,
    runs_table,
    settings_table,
    spread_text,
)

DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")
"""As SVG writes them: the first eight labels have solid lines, the next eight broken ones."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one label is drawn.

    Attributes:
        index: of the label, from 0.
        series: number of the page's colour, from 1.
        dashes: as SVG writes them.
    """

    index: int
    series: int
    dashes: str

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of matplotlib's ``plot``."""
        dashes = tuple(map(float, self.dashes.split()))
        return {
            "color": SERIES[self.series - 1],
            "linestyle": (0, dashes) if dashes else "-",
            "linewidth": 1.5,
        }


def style_of(index: int) -> Style:
    """Return the style of a label by its place."""
    return Style(
        index=index,
        series=index % len(SERIES) + 1,
        dashes=DASHES[index // len(SERIES) % len(DASHES)],
    )


def draw_trade_off(axes: Axes, comparison: Comparison) -> None:
    """Draw average accuracy over forgetting, a point a label, with standard deviations."""
    names = ("forgetting", "average_accuracy")
    points: list[tuple[float, float, int]] = []
    for i, label in enumerate(comparison.labels):
        x, y = (label.measures[name] for name in names)
        if x is None or y is None:
            continue
        axes.errorbar(
            x.mean,
            y.mean,
            xerr=x.std,
            yerr=y.std,
            color=SERIES[style_of(i).series - 1],
            marker="o" if i < len(SERIES) else "D",
            markersize=5,
            linewidth=0.8,
            alpha=0.95,
        )
        points.append((x.mean, y.mean, i))
    axes.grid(visible=True, axis="both")
    axes.set_xlabel("forgetting, points (left is better)")
    axes.set_ylabel("average accuracy, %")
    axes.margins(0.08)
    _name_points(axes, points, [label.label for label in comparison.labels])


def draw_mean_scores(axes: Axes, comparison: Comparison, order: str) -> None:
    """Draw the mean score over the tasks learned so far, after each task, a line a label."""
    for i, matrix in _matrices(comparison.labels, order):
        means = [_mean(row[:t]) for t, row in enumerate(matrix.rows) if t]
        _line(axes, range(1, len(means) + 1), means, index=i)
    _finish(axes, tasks=len(comparison.orders[order]), first=1)


def draw_task(axes: Axes, comparison: Comparison, order: str, number: int) -> None:
    """Draw the score of one task, counted from 1, over the tasks learned, a line a label."""
    for i, matrix in _matrices(comparison.labels, order):
        scores = [_or_nan(row[number - 1]) for row in matrix.rows]
        _line(axes, range(len(scores)), scores, index=i)
    axes.axvline(number, color=MUTED, linewidth=0.7, linestyle=(0, (2, 2)))
    _finish(axes, tasks=len(comparison.orders[order]), first=0)


def _matrices(labels: Sequence[LabelSummary], order: str) -> Iterator[tuple[int, AccuracyMatrix]]:
    for i, label in enumerate(labels):
        matrix = label.matrix(order)
        if matrix is not None:
            yield i, matrix


def _line(axes: Axes, x: Sequence[int], y: Sequence[float], *, index: int) -> None:
    known = [value for value in y if not math.isnan(value)]
    marker: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(known) == 1 else {}
    axes.plot(x, y, clip_on=False, **style_of(index).line, **marker)


def _finish(axes: Axes, *, tasks: int, first: int) -> None:
    axes.set_xticks(range(first, tasks + 1, max(1, math.ceil(tasks / 8))))
    axes.set_xlim(first - 0.15, max(tasks, first + 1) + 0.15)
    axes.set_yticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
    axes.set_ylim(-2, 102)


def _name_points(axes: Axes, points: list[tuple[float, float, int]], names: list[str]) -> None:
    """Write the names in a column right of the axes, in the order of height, with thin leaders."""
    low, high = axes.get_ylim()
    ordered = sorted(points, key=lambda point: point[1])
    places = spread_out([(y - low) / (high - low) for _, y, _ in ordered], gap=0.065, ceiling=1)
    for (x, y, i), place in zip(ordered, places, strict=True):
        axes.annotate(
            printable(names[i], limit=30),
            (x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            va="center",
            color=SERIES[style_of(i).series - 1],
            fontsize=8,
            arrowprops={
                "arrowstyle": "-",
                "color": MUTED,
                "linewidth": 0.4,
                "alpha": 0.6,
                "relpos": (0, 0.5),
                "shrinkB": 4,
            },
        )


def _mean(cells: Sequence[float | None]) -> float:
    known = [cell for cell in cells if cell is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(cells) else math.nan


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def render_comparison(comparison: Comparison, *, title: str) -> str:
    """Return the page as text.

    Args:
        comparison: what to show; everything in it is escaped.
        title: heading of the page.
    """
    from lcia.reports.compare_page import style_of

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
    from lcia.reports.compare_page import draw_trade_off

    names = ("forgetting", "average_accuracy")
    if all(None in [label.measures[name] for name in names] for label in comparison.labels):
        return None
    note = "Average accuracy over forgetting, one point a label"
    return _svg(draw_trade_off, comparison, key="trade", label=note, size=(7.4, 3.9))


def _orders(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield what is shown of each order: scores over time, and a matrix a label."""
    from lcia.reports.compare_page import draw_mean_scores, draw_task

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
