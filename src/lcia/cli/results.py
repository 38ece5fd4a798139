"""What ``lcia run`` prints at its end."""

from collections.abc import Sequence
from pathlib import Path

from lcia.cli.chat import explain
from lcia.cli.console import console, print_table
from lcia.cli.evaluate import print_matrix
from lcia.evaluation.generate import Prediction
from lcia.evaluation.metrics import MEASURES
from lcia.experiments.results import SIZES, Result
from lcia.learner import Version
from lcia.reports.numbers import measured

SAMPLES = 3
SIDE_BY_SIDE = 4
"""So many runs fit beside each other on a terminal."""

DETAILS = (*SIZES, "steps_per_task", "beta_mean")
"""What only ``lcia compare`` and the reports show."""


def show_results(results: Sequence[Result], *, report: Path) -> None:
    """Print the results: of a few runs their matrices, of all of them one table of numbers."""
    few = len(results) <= SIDE_BY_SIDE
    for result in results if few else ():
        console.print()
        print_matrix(result.store.current.matrix(), title=result.folder.name)
    console.print()
    _print_measures(results, runs_as_rows=not few)
    last = results[-1]
    version = last.store.current
    console.print()
    _print_groups(version, title=f"Groups of {last.folder.name}")
    console.print(f"\nThree answers of {last.folder.name}", style="bold", markup=False)
    for prediction in _samples(version):
        _show_answer(prediction)
    console.print(f"\nReport: {report}", markup=False, soft_wrap=True)
    console.print(f"Try:    lcia chat {last.folder / 'assistant'}", markup=False, soft_wrap=True)


def _print_measures(results: Sequence[Result], *, runs_as_rows: bool) -> None:
    shown = [
        name
        for name in MEASURES
        if name not in DETAILS and any(result.metrics[name] is not None for result in results)
    ]
    table = [
        [measured(result.metrics[name], MEASURES[name].unit) for name in shown]
        for result in results
    ]
    names = [result.folder.name for result in results]
    if runs_as_rows:
        columns = [MEASURES[name].short for name in shown]
        rows = [[name, *cells] for name, cells in zip(names, table, strict=True)]
        print_table("Results, in percent", ["", *columns], rows)
    else:
        labels = [MEASURES[name].label for name in shown]
        rows = [[label, *cells] for label, *cells in zip(labels, *table, strict=True)]
        print_table("Results, in percent", ["", *names], rows)


def _print_groups(version: Version, *, title: str) -> None:
    rows = []
    for group in version.codebook().groups:
        tasks = ", ".join(task.name for task in group.tasks)
        rows.append([group.id, tasks, group.instructions[0]])
    print_table(title, ["group", "tasks", "an instruction of it"], rows, left=(0, 1, 2))


def _samples(version: Version) -> list[Prediction]:
    """Return the first prediction of a few tasks, of different groups as far as there are."""
    firsts: dict[str, Prediction] = {}
    for prediction in version.predictions():
        firsts.setdefault(prediction.task, prediction)
    seen: set[str | None] = set()
    fresh: list[Prediction] = []
    rest: list[Prediction] = []
    for prediction in firsts.values():
        (rest if prediction.group in seen else fresh).append(prediction)
        seen.add(prediction.group)
    return [*fresh, *rest][:SAMPLES]


def _show_answer(prediction: Prediction) -> None:
    for line in prediction.prompt.splitlines():
        if line.strip():
            console.print(f"> {line}", markup=False)
    console.print(f"{prediction.prediction}   (expected: {prediction.answers[0]})", markup=False)
    console.print(explain(prediction), style="dim", markup=False)
