"""``lcia eval``: the scores of an assistant."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lcia.evaluation.matrix import AccuracyMatrix


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="eval")(evaluate)


def evaluate(
    store: Annotated[Path, typer.Argument(help="An assistant's folder.")],
    again: Annotated[
        bool, typer.Option("--again", help="Answer all held-out samples again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Show the accuracy matrix and every metric of an assistant.

    With --again, the held-out samples of all tasks are answered anew by the current version and
    compared with the recorded scores.

    Examples:

      lcia eval runs/demo/lcia-seed0/assistant

      lcia eval runs/demo/lcia-seed0/assistant --again --json
    """
    from lcia.cli.console import console, number, print_json, print_table
    from lcia.evaluation.metrics import METRICS, summarise
    from lcia.learner import Store

    version = Store.open(store).current
    matrix = version.matrix()
    result: dict[str, Any] = {
        "version": version.number,
        "matrix": matrix.to_json(),
        "metrics": summarise(matrix),
    }
    if again:
        result["scores_again"] = _answer_again(store)
    if as_json:
        print_json(result)
        return
    print_matrix(matrix, title=f"{store}, version {version.number}")
    rows = [
        [metric.label, number(result["metrics"][name]), metric.formula]
        for name, metric in METRICS.items()
    ]
    console.print()
    print_table("Metrics", ["", "percent", "formula"], rows, left=(0, 2))
    if again:
        rows = [
            [task, number(matrix.row(matrix.learned)[task]), number(score)]
            for task, score in result["scores_again"].items()
        ]
        console.print()
        print_table("Answered again", ["task", "recorded", "now"], rows)


def _answer_again(store: Path) -> dict[str, float]:
    from lcia.evaluation.generate import evaluate as answer_all
    from lcia.evaluation.generate import scores_percent
    from lcia.learner import ContinualLearner, Store

    learner = ContinualLearner(Store.open(store))
    version = learner.store.current
    return scores_percent(
        answer_all(
            learner.host,
            version.tasks(),
            route=learner.router(version).route,
            adapters=version.adapters,
            batch_size=learner.config.generation.batch_size,
        )
    )


def print_matrix(matrix: "AccuracyMatrix", *, title: str) -> None:
    """Print the accuracy matrix: a row per task learned, a column per task scored.

    Columns are numbered like the rows: names would not fit.
    """
    from lcia.cli.console import number, print_table

    rows = [
        [f"{t} {matrix.tasks[t - 1]}" if t else "before", *(number(cell) for cell in row)]
        for t, row in enumerate(matrix.rows)
    ]
    columns = ["after learning", *(str(i) for i in range(1, len(matrix.tasks) + 1))]
    print_table(title, columns, rows)
