"""What ``lcia run`` prints at its end."""

from collections.abc import Sequence
from pathlib import Path

from lcia.cli.chat import explain
from lcia.cli.console import console, duration, number, print_table
from lcia.cli.evaluate import print_matrix
from lcia.evaluation.generate import Prediction
from lcia.evaluation.metrics import METRICS
from lcia.experiments import Result
from lcia.learner import Version

SAMPLES = 3


def show_results(results: Sequence[Result], *, report: Path) -> None:
    """Print matrices, one table of all metrics, the last run's groups and a few answers."""
    for result in results:
        console.print()
        print_matrix(result.store.current.matrix(), title=result.folder.name)
    console.print()
    _print_metrics(results)
    last = results[-1]
    version = last.store.current
    console.print()
    _print_groups(version, title=f"Groups of {last.folder.name}")
    console.print(f"\nThree answers of {last.folder.name}", style="bold", markup=False)
    for prediction in _samples(version):
        _show_answer(prediction)
    console.print(f"\nReport: {report}", markup=False, soft_wrap=True)
    console.print(f"Try:    lcia chat {last.folder / 'assistant'}", markup=False, soft_wrap=True)


def _print_metrics(results: Sequence[Result]) -> None:
    names = [result.folder.name for result in results]
    rows = [
        [metric.label, *(number(result.metrics[name]) for result in results)]
        for name, metric in METRICS.items()
    ]
    rows.append(["Groups", *(str(result.groups) for result in results)])
    rows.append(["Time", *(duration(result.seconds) for result in results)])
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
    fresh, rest = [], []
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
