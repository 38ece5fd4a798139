"""``lcia eval``: the scores of an assistant."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcia.cli.store import StorePath

if TYPE_CHECKING:
    from lcia.evaluation.matrix import AccuracyMatrix
    from lcia.learner import Store


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="eval")(evaluate)


def evaluate(
    store: StorePath,
    again: Annotated[
        bool, typer.Option("--again", help="Answer all held-out samples again.")
    ] = False,
    task_given: Annotated[
        bool,
        typer.Option(
            "--task-given", help="Answer them with the group that learned their task, not routed."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Show the accuracy matrix and every metric of an assistant.

    With --again, the held-out samples of all tasks are answered anew by the current version and
    compared with the recorded scores. With --task-given, they are answered past the router: the
    difference is what routing costs. Started by torchrun, all processes answer.

    Examples:

      lcia eval runs/demo/lcia-seed0/assistant

      lcia eval runs/demo/lcia-seed0/assistant --again --json

      lcia eval runs/demo/lcia-seed0/assistant --task-given
    """
    from lcia.cli.console import console, number, print_json, print_table
    from lcia.distributed.launch import JOINING, join, logs_beside
    from lcia.distributed.processes import is_main
    from lcia.evaluation.metrics import MEASURES, summarise
    from lcia.experiments.results import routing_accuracy_of
    from lcia.learner import Store

    opened = Store.open(store)
    training = opened.config.training
    join({k: training[k] for k in JOINING if k in training}, logs=logs_beside(store))
    matrix = opened.current.matrix()
    result: dict[str, Any] = {
        "version": opened.current.number,
        "matrix": matrix.to_json(),
        "metrics": {**summarise(matrix), "routing_accuracy": routing_accuracy_of(opened)},
    }
    if matrix.basis is not None:
        result["basis"] = matrix.basis
    if again:
        result["scores_again"] = _answer_again(opened, task_given=None, quiet=as_json)
    if task_given:
        result["scores_task_given"] = _answer_again(opened, task_given=True, quiet=as_json)
    if not is_main():
        return
    if as_json:
        print_json(result)
        return
    print_matrix(matrix, title=f"{store}, version {opened.current.number}")
    rows = [
        [MEASURES[name].label, number(value), MEASURES[name].formula]
        for name, value in result["metrics"].items()
    ]
    console.print()
    print_table("Metrics", ["", "percent", "formula"], rows, left=(0, 2))
    if basis := matrix.basis:
        console.print(
            f"The last row rests on {basis['samples']} held-out samples of {basis['tasks']} of "
            f"{basis['of_tasks']} tasks (evaluation.samples). n: samples behind a cell; a dash: "
            "not measured.",
            markup=False,
        )
    titles = {
        "scores_again": "Answered again",
        "scores_task_given": "Answered by the group that learned the task",
    }
    for key, title in titles.items():
        if key in result:
            recorded = matrix.row(matrix.learned)
            rows = [[t, number(recorded[t]), number(score)] for t, score in result[key].items()]
            console.print()
            print_table(title, ["task", "recorded", "now"], rows)


def _answer_again(store: "Store", *, task_given: bool | None, quiet: bool) -> dict[str, float]:
    from lcia.cli.console import Bar
    from lcia.evaluation.generate import scores_percent
    from lcia.learner import ContinualLearner

    with Bar(quiet=quiet) as bar:
        found = ContinualLearner(store).evaluate(
            task_given=task_given,
            progress=lambda done, total: bar.show("held-out answers", done, total),
        )
    return scores_percent(found)


def print_matrix(matrix: "AccuracyMatrix", *, title: str) -> None:
    """Print the accuracy matrix: a row per task learned, a column per task scored.

    Columns are numbered like the rows: names would not fit.
    """
    from lcia.cli.console import number, print_table

    shown = [[number(cell) for cell in row] for row in matrix.rows]
    for row, counts in zip(shown, matrix.counts or (), strict=False):
        row[:] = [f"{cell} n={n}" if n else cell for cell, n in zip(row, counts, strict=True)]
    rows = [[f"{t} {matrix.tasks[t - 1]}" if t else "before", *row] for t, row in enumerate(shown)]
    columns = ["after learning", *(str(i) for i in range(1, len(matrix.tasks) + 1))]
    print_table(title, columns, rows)
