"""A comparison as tables of text, for the terminal, Markdown and HTML alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lcia.evaluation.metrics import MEASURES
from lcia.experiments.comparison import (
    FORGETTING_RATIO,
    SHARE_OF_JOINT,
    Comparison,
    LabelSummary,
    Spread,
)
from lcia.reports.html import flat_settings
from lcia.reports.numbers import DASH, MINUS, measured, number

SCORES = (
    "average_accuracy",
    "forgetting",
    "new_accuracy",
    "backward_transfer",
    "forward_transfer",
    "mean_average_accuracy",
    "general_ability",
    "routing_accuracy",
    "task_given_accuracy",
)
Cell = tuple[int, int]
COSTS = tuple(name for name in MEASURES if name not in SCORES)


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """One table.

    Attributes:
        title: above it.
        note: below it; may be empty.
        columns: the first is a name, the others are numbers.
        rows: as many cells each.
        best: row and column of the cells that are best in their column.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[Cell] = frozenset()


def comparison_tables(comparison: Comparison) -> list[TextTable]:
    """Return scores, paired differences and costs; columns no label has are left out."""
    labels = comparison.labels
    others = [label for label in labels if label.label != comparison.baseline]
    tables = [
        _scores(labels, joint=any(label.share_of_joint is not None for label in labels)),
        _table(
            f"Differences from {comparison.baseline}, paired by seed and order",
            "Mean ± standard deviation of the differences over the pairs, in percentage points.",
            others,
            {name: MEASURES[name].short for name in SCORES},
            value=lambda label, name: label.differences[name],
            unit="difference",
        ),
        _table(
            "Size and cost",
            "Means over the runs. Parameters are counts of numbers; horizon and steps are "
            "optimizer steps, fallbacks percent.",
            labels,
            {name: MEASURES[name].short for name in COSTS},
            value=lambda label, name: label.measures[name],
        ),
    ]
    return [table for table in tables if table.rows and len(table.columns) > 2]


def runs_table(comparison: Comparison) -> TextTable:
    """Return one row per run."""
    names = [n for n in SCORES if any(run.metrics[n] is not None for run in comparison.runs)]
    names += ["groups", "seconds"]
    rows = [
        (
            run.label,
            str(run.seed),
            run.order,
            *(measured(run.metrics[name], MEASURES[name].unit) for name in names),
        )
        for run in comparison.runs
    ]
    columns = ("label", "seed", "order", *(MEASURES[name].short for name in names))
    return TextTable(title="Runs", note="", columns=columns, rows=tuple(rows))


def settings_table(comparison: Comparison) -> TextTable:
    """Return the settings that differ between labels, one column each."""
    settings = {
        label.label: dict(flat_settings(label.runs[0].settings)) for label in comparison.labels
    }
    keys = dict.fromkeys(key for of_label in settings.values() for key in of_label)
    odd = [key for key in keys if len({of.get(key) for of in settings.values()}) > 1]
    rows = [
        (label, *(of_label.get(key, "") for key in odd)) for label, of_label in settings.items()
    ]
    return TextTable(
        title="Settings that differ", note="", columns=("label", *odd), rows=tuple(rows)
    )


def formulas(comparison: Comparison) -> dict[str, str]:
    """Return the label of every measure that some run has to its formula."""
    shown = {
        measure.label: measure.formula
        for name, measure in MEASURES.items()
        if any(run.metrics[name] is not None for run in comparison.runs)
    }
    return {**shown, "Forgetting ratio": FORGETTING_RATIO, "Of multitask": SHARE_OF_JOINT}


def spread_text(spread: Spread | None, unit: str) -> str:
    """Return ``56.2 ± 1.3``, with a sign where the unit is ``difference``."""
    if spread is None:
        return DASH
    if unit == "difference":
        text = number(spread.mean)
        text = text if text.startswith(MINUS) or text == "0.0" else f"+{text}"
    else:
        text = measured(spread.mean, unit)
    scored = unit in ("percent", "points", "difference")
    return f"{text} ± {number(spread.std)}" if scored and spread.std is not None else text


def _scores(labels: Sequence[LabelSummary], *, joint: bool) -> TextTable:
    table = _table(
        "Scores",
        "Mean ± standard deviation over n runs, in percent and percentage points. Bold: best.",
        labels,
        {name: MEASURES[name].short for name in SCORES},
        value=lambda label, name: label.measures[name],
        mark_best=True,
    )
    ratios = [number(label.forgetting_ratio, 2) for label in labels]
    shares = [number(label.share_of_joint) for label in labels]
    columns, cells = (*table.columns, "Forg. ratio"), [[ratio] for ratio in ratios]
    if joint:
        columns = (*columns, "% of multitask")
        cells = [[*own, share] for own, share in zip(cells, shares, strict=True)]
    rows = tuple((*row, *own) for row, own in zip(table.rows, cells, strict=True))
    return TextTable(
        title=table.title, note=table.note, columns=columns, rows=rows, best=table.best
    )


def _table(
    title: str,
    note: str,
    labels: Sequence[LabelSummary],
    names: Mapping[str, str],
    *,
    value: Callable[[LabelSummary, str], Spread | None],
    unit: str | None = None,
    mark_best: bool = False,
) -> TextTable:
    shown = [name for name in names if any(value(label, name) is not None for label in labels)]
    spreads = [[value(label, name) for name in shown] for label in labels]
    rows = [
        (
            label.label,
            str(max((spread.n for spread in row if spread is not None), default=0)),
            *(
                spread_text(spread, unit or MEASURES[name].unit)
                for spread, name in zip(row, shown, strict=True)
            ),
        )
        for label, row in zip(labels, spreads, strict=True)
    ]
    means = [[None if spread is None else spread.mean for spread in row] for row in spreads]
    return TextTable(
        title=title,
        note=note,
        columns=("label", "n", *(names[name] for name in shown)),
        rows=tuple(rows),
        best=_best(means, shown) if mark_best else frozenset(),
    )


def _best(means: Sequence[Sequence[float | None]], names: Sequence[str]) -> frozenset[Cell]:
    """Return row and column, two columns further right, of the best of several means."""
    found: set[Cell] = set()
    for column, name in enumerate(names):
        known = [mean for row in means if (mean := row[column]) is not None]
        if len(set(known)) > 1:
            best = (max if MEASURES[name].higher_is_better else min)(known)
            found |= {(i, column + 2) for i, row in enumerate(means) if row[column] == best}
    return frozenset(found)
