"""Leaderboard and frontier of all committed results; ``benchmarks.tables`` writes them.

docs/leaderboard.md has a table a stream, the frontier and what others published; docs/frontier.png
is accuracy over the share of samples that a method keeps.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from lcia.config import BEFORE, AssistantConfig
from lcia.config.stream import load_stream_config
from lcia.experiments.comparison import Spread
from lcia.experiments.finished import FinishedRun, find_runs
from lcia.files import write_text
from lcia.registry import METHODS
from lcia.reports.compare_page import markdown_table
from lcia.reports.numbers import DASH, measured, number
from lcia.reports.plots import MUTED, SERIES, save, style
from lcia.reports.tables import TextTable, spread_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "leaderboard.md"
FIGURE = ROOT / "docs" / "frontier.png"
FRONTIER = ("superni/shared", "superni/frontier")
"""Folders whose runs are of the frontier's stream."""
RECIPE = ROOT / "recipes" / "superni" / "frontier.yaml"
CURVE = ("sequential", "replay")
CEILINGS = ("single", "multitask")

COLUMNS = (
    *("label", "method", "setting", "keeps", "stored", "seeds", "orders", "commit", "minutes"),
    *("Avg.ACC", "forgetting"),
)

HEAD = """# Leaderboard

Written by `python -m benchmarks.tables` from `benchmarks/results/**/results.jsonl.gz`. Settings,
matrices and differences are in [benchmarks.md](benchmarks.md), what follows from them in
[study.md](study.md), and how to run any of it again in
[REPRODUCIBILITY.md](../REPRODUCIBILITY.md).

One table a stream, best average accuracy first; mean ± standard deviation over seeds and orders,
in percent and points. *Keeps* is how many training samples stay stored, *stored* how many
parameters. A row without a commit is older than lcia's noting of it. Rows of one table differ in
more than the method where label or *setting* say so (what is not the method's default, then
learning rate × batch); few have more than two runs, so most
differences are noise.
"""

FRONTIER_TEXT = """## Frontier: accuracy over what is remembered

![Average accuracy over the share of samples kept](frontier.png)

Five classification tasks under two instructions (`recipes/superni/frontier.yaml`). The line is
plain replay, `sequential` its point at 0; dashed lines are the ceilings. One seed and one order
unless the table says otherwise: one test answer is worth 0.4 points of average accuracy.
"""

BY_HAND = "## What others published"
"""From this heading on the page is written by hand and stays."""


def page(names: Iterable[str]) -> str:
    """Return the page as Markdown, of these folders of results."""
    parts = [HEAD.rstrip()]
    for name in names:
        runs, _ = find_runs([RESULTS / name])
        parts.append(markdown_table(table(name, runs)))
    if points := frontier():
        parts += [FRONTIER_TEXT.rstrip(), markdown_table(_frontier_table(points), level=3)]
    before = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    _, heading, rest = before.partition(BY_HAND)
    return "\n\n".join([*parts, (heading + rest).rstrip()]).rstrip() + "\n"


def table(name: str, runs: Sequence[FinishedRun]) -> TextTable:
    """Return the leaderboard of one stream, the best average accuracy first."""
    rows = [(_mean(group, "average_accuracy"), _row(label, group)) for label, group in _by(runs)]
    rows.sort(key=lambda row: -row[0])
    return TextTable(title=name, note="", columns=COLUMNS, rows=tuple(row for _, row in rows))


def frontier() -> dict[str, tuple[str, Sequence[FinishedRun], float]]:
    """Return label to method, runs and the percent of samples kept, of the frontier's stream."""
    places = [RESULTS / name for name in FRONTIER if (RESULTS / name).is_dir()]
    if not places:
        return {}
    total = sum(task.max_train or 0 for task in load_stream_config(RECIPE).tasks)
    runs, _ = find_runs(places)
    return {
        label: (group[0].method, group, 100 * _mean(group, "stored_samples") / total)
        for label, group in _by(runs)
    }


def draw(points: Mapping[str, tuple[str, Sequence[FinishedRun], float]], path: Path) -> None:
    """Write the figure: replay as a line, ceilings as dashed lines, the rest as named points."""
    with style():
        figure = Figure(figsize=(5.6, 3.6), facecolor="white")
        axes = figure.subplots()
        scores = {k: Spread.of(_scores(runs)) for k, (_, runs, _) in points.items()}
        curve = sorted(
            (share, scores[label].mean, label)
            for label, (method, _, share) in points.items()
            if method in CURVE and scores[label]
        )
        axes.plot(*zip(*((x, y) for x, y, _ in curve), strict=True), "o-", color=MUTED)
        for x, y, label in curve:
            axes.annotate(label, (x, y), xytext=(4, -11), textcoords="offset points", color=MUTED)
        number_of = 0
        for label, (method, _, share) in points.items():
            score = scores[label]
            if score is None or method in CURVE:
                continue
            if method in CEILINGS:
                axes.axhline(score.mean, color=MUTED, linestyle="--", linewidth=0.9)
                axes.annotate(label, (axes.get_xlim()[1], score.mean), ha="right", va="bottom")
                continue
            colour = SERIES[number_of % len(SERIES)]
            number_of += 1
            axes.errorbar(share, score.mean, yerr=score.std, marker="D", color=colour)
            axes.annotate(
                label, (share, score.mean), xytext=(5, 4), textcoords="offset points", color=colour
            )
        axes.grid(visible=True, axis="both")
        axes.margins(0.12)
        axes.set_xlabel("training samples kept, %")
        axes.set_ylabel("average accuracy after the last task, %")
        save(figure, path, dpi=110)


def write(names: Iterable[str]) -> None:
    """Write the page and the figure."""
    write_text(PAGE, page(names))
    if points := frontier():
        draw(points, FIGURE)


def _frontier_table(
    points: Mapping[str, tuple[str, Sequence[FinishedRun], float]],
) -> TextTable:
    rows = [
        (
            label,
            method,
            "all, at once" if method == "multitask" else f"{number(share)} %",
            spread_text(Spread.of(_scores(runs)), "percent"),
            spread_text(Spread.of(run.metrics["forgetting"] for run in runs), "points"),
            str(len(runs)),
        )
        for label, (method, runs, share) in sorted(points.items(), key=lambda p: p[1][2])
    ]
    columns = ("label", "method", "keeps", "Avg.ACC", "forgetting", "runs")
    return TextTable(title="Its points", note="", columns=columns, rows=tuple(rows))


def _row(label: str, runs: Sequence[FinishedRun]) -> tuple[str, ...]:
    first = runs[0]
    minutes = _mean(runs, "seconds") / 60
    return (
        label,
        first.method,
        ", ".join(_settings(first)),
        measured(_mean(runs, "stored_samples"), "count").strip() if not first.joint else "all",
        measured(_mean(runs, "stored_parameters"), "count").strip(),
        ", ".join(str(seed) for seed in sorted({run.seed for run in runs})),
        str(len({run.order for run in runs})),
        ", ".join(dict.fromkeys(run.environment.get("revision", DASH) for run in runs)),
        number(minutes, 0),
        spread_text(Spread.of(_scores(runs)), "percent"),
        spread_text(Spread.of(run.metrics["forgetting"] for run in runs), "points"),
    )


def _settings(run: FinishedRun) -> Iterator[str]:
    """Yield what differs from the method's defaults: its settings, rule, grouping, rate."""
    plain = AssistantConfig(model="m", method=run.method).resolved()
    defaults = {
        **plain.method,
        **{f"rule.{k}": v for k, v in plain.rule.items()},
        **dataclasses.asdict(plain.resolve_grouping()),
    }
    chosen = {
        **BEFORE.get(run.method, {}),  # settings that came after the run
        **run.settings["method"],
        **{f"rule.{k}": v for k, v in run.settings["rule"].items()},
        **run.settings["grouping"],
    }
    if not METHODS.get(run.method).averages:
        chosen = {k: v for k, v in chosen.items() if not k.startswith("rule.")}
    if not chosen.get("validation"):
        chosen.pop("opening", None)  # it is a share of what is held back
    for key, value in chosen.items():
        if value != defaults.get(key):
            yield f"{key} {_short(value)}"
    training = run.settings["training"]
    yield f"{training['learning_rate']:g} × {training['per_device_train_batch_size']}"


def _by(runs: Sequence[FinishedRun]) -> Iterator[tuple[str, list[FinishedRun]]]:
    """Yield label and runs, labels in the order of their first run."""
    order = list(dict.fromkeys(run.label for run in runs))
    ordered = sorted(runs, key=lambda run: order.index(run.label))
    for label, group in groupby(ordered, key=lambda run: run.label):
        yield label, list(group)


def _scores(runs: Sequence[FinishedRun]) -> list[float | None]:
    return [run.metrics["average_accuracy"] for run in runs]


def _mean(runs: Sequence[FinishedRun], name: str) -> float:
    known = [value for run in runs if (value := run.metrics[name]) is not None]
    return sum(known) / len(known) if known else 0.0


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
