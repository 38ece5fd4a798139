"""One self-contained HTML page: no network, no script, light and dark, fit to print."""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcia.errors import ConfigError
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.evaluation.metrics import METRICS, averaging, summarise
from lcia.files import write_bytes
from lcia.reports.data import ReportData, RunRecord, StepRecord
from lcia.reports.numbers import number, size

if TYPE_CHECKING:
    from jinja2 import Environment


def write_report(data: ReportData, path: str | Path) -> None:
    """Write the report as one HTML file.

    Args:
        data: what to show; everything in it is escaped.
        path: the file; its folder exists. The same data give the same bytes.

    Raises:
        ConfigError: there is no run, or two runs have the same method name.
    """
    # A lone surrogate, as JSON may carry it, has no UTF-8 form.
    write_bytes(Path(path), render(data).encode("utf-8", "replace"))


def render(data: ReportData) -> str:
    """Return the page as text; ``write_report`` writes it.

    Raises:
        ConfigError: there is no run, or two runs have the same method name.
    """
    names = [run.method for run in data.runs]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"A report shows runs of different names, at least one; found {names}.")
    return (
        templates()
        .get_template("report.html")
        .render(
            data=data,
            metrics=_metric_rows(data.runs),
            runs=[_run_view(run, key=f"run{k}") for k, run in enumerate(data.runs)],
            settings=list(flat_settings(data.settings)),
        )
    )


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the text of every setting of a nested configuration."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat_settings(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False, default=str)


def heat_rows(matrix: AccuracyMatrix) -> list[dict[str, Any]]:
    """Return the rows of a heat map: what was learned, the cells, the mean of those learned."""
    rows = []
    for t, row in enumerate(matrix.rows):
        seen = [score for score in row[:t] if score is not None]
        complete = bool(seen) and len(seen) == t
        rows.append(
            {
                "learned": "before learning" if t == 0 else matrix.tasks[t - 1],
                "cells": list(zip(matrix.tasks, row, strict=True)),
                "mean": math.fsum(seen) / t if complete else None,
            }
        )
    return rows


@functools.cache
def templates() -> "Environment":
    """Return the templates of pages, everything in them escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lcia.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "size": size}
    return environment


def _metric_rows(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    values = [summarise(run.matrix) for run in runs]
    rows = []
    for name, metric in METRICS.items():
        cells = [value[name] for value in values]
        known = [cell for cell in cells if cell is not None]
        best = (max if metric.higher_is_better else min)(known) if len(known) > 1 else None
        rows.append({"name": name, "metric": metric, "cells": cells, "best": best})
    return rows


def _run_view(run: RunRecord, *, key: str) -> dict[str, Any]:
    return {
        "record": run,
        "summary": summarise(run.matrix),
        "heat": heat_rows(run.matrix),
        "charts": _charts(run, key=key),
        "training": _training_rows(run.steps),
        "routed_to": list(dict.fromkeys(g for shares in run.routing.values() for g in shares)),
    }


def _charts(run: RunRecord, *, key: str) -> list[dict[str, str]]:
    from markupsafe import Markup

    from lcia.reports import plots
    from lcia.reports.plots import inline_svg

    steps = run.steps
    wanted: list[tuple[str, str, str, Callable[..., None], Any]] = [
        (
            "scores",
            "Score of each task",
            "After each task learned; dotted until the task itself is learned.",
            plots.draw_scores,
            run.matrix if run.matrix.tasks else None,
        ),
        (
            "loss",
            "Training loss",
            "On the answer's tokens.",
            plots.draw_loss,
            steps if any(step.loss is not None for step in steps) else (),
        ),
        (
            "beta",
            "Balance weight β",
            "Weight of the old average: mean over the tensors, smallest to largest shaded. "
            "Higher is more stable. No line: no average at work.",
            plots.draw_beta,
            steps if any(step.beta_mean is not None for step in steps) else (),
        ),
        (
            "fallbacks",
            "Fallbacks by reason",
            "Share of tensors whose β is the fallback, because the closed form did not apply.",
            plots.draw_fallbacks,
            steps if plots.reasons_of(steps) else (),
        ),
    ]
    return [
        {
            "title": title,
            "note": note,
            "svg": Markup(inline_svg(draw, source, key=f"{key}-{name}", label=f"{title}. {note}")),
        }
        for name, title, note, draw, source in wanted
        if source
    ]


def _training_rows(steps: Sequence[StepRecord]) -> list[dict[str, Any]]:
    rows = []
    for task, group in groupby(steps, key=lambda step: step.task):
        records = list(group)
        losses = [step.loss for step in records if step.loss is not None]
        averaged = averaging(
            [step.beta_mean for step in records if step.beta_mean is not None],
            [sum(step.fallbacks.values()) for step in records if step.beta_mean is not None],
        )
        rows.append(
            {
                "task": task,
                "steps": len(records),
                "loss": losses[-1] if losses else None,
                "beta": averaged["beta_mean"],
                "horizon": averaged["horizon_steps"],
                "fallbacks": averaged["fallback_share"],
            }
        )
    return rows
