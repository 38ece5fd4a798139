"""Figures of a comparison: one line or point per label, in one style everywhere."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from lcia.evaluation.matrix import AccuracyMatrix
from lcia.experiments.comparison import Comparison, LabelSummary
from lcia.reports.plots import MUTED, SERIES, printable, spread_out

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
