"""``lcia plan``: which task would go to which group, before any training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcia.cli.run import AsJson, Overrides

if TYPE_CHECKING:
    from lcia.grouping import ThresholdAdvice


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(plan)


def plan(
    stream: Annotated[Path, typer.Argument(help="A stream file (YAML).")],
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Write the similarities as .png or .svg.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006  typer's form of a repeated option
    as_json: AsJson = False,
) -> None:
    """Show which task would join which group, how similar the tasks are, and what to choose.

    Examples:

      lcia plan stream.yaml

      lcia plan stream.yaml --set grouping.threshold=0.5 --picture similarities.png
    """
    from lcia.cli.console import console, number, print_json, print_table
    from lcia.config import load_stream_config
    from lcia.experiments import stream_tasks
    from lcia.grouping import GroupingConfig, plan_groups, suggest_threshold, task_similarities
    from lcia.learner import instructions_of

    config = load_stream_config(stream, overrides)
    tasks = stream_tasks(config, base=stream.parent)
    grouping = config.grouping or GroupingConfig()
    extractions = {task.name: instructions_of(task) for task in tasks}
    planned = plan_groups(extractions, grouping)
    similarities = task_similarities(extractions, grouping)
    advice = suggest_threshold(extractions, grouping)
    if picture is not None:
        from lcia.reports.plots import similarity_figure

        similarity_figure(list(extractions), similarities, picture)
    if as_json:
        print_json(_as_json(extractions, planned, similarities, advice))
        return
    rows = [
        [
            task,
            group,
            number(decision.similarity, 2),
            decision.reason,
            f"{len(extractions[task].instructions)}: {extractions[task].instructions[0][:50]}",
        ]
        for task, (group, decision) in planned.items()
    ]
    title = f"Groups at threshold {grouping.threshold:g} ({grouping.similarity})"
    columns = ["task", "group", "similarity", "reason", "instructions"]
    print_table(title, columns, rows, left=(0, 4))
    rows = [
        [f"{i} {name}", *(number(float(s), 2) for s in row)]
        for i, (name, row) in enumerate(zip(extractions, similarities, strict=True), start=1)
    ]
    console.print()
    numbers = [str(i) for i in range(1, len(extractions) + 1)]
    print_table("Similarity of tasks", ["task", *numbers], rows)
    rows = [
        [f"{level.low:.2f} – {level.high:.2f}", str(level.group_count), _members(level.groups)]
        for level in advice.levels
    ]
    console.print()
    columns = ["threshold", "groups", "which"]
    print_table("What the threshold does", columns, rows, left=(0, 2))
    console.print(
        f"\nThe widest range with more than one group suggests "
        f"grouping.threshold={advice.threshold:.2f}",
        markup=False,
        soft_wrap=True,
    )


def _members(groups: Any) -> str:
    """Return ``a+b | c``: the tasks of each group."""
    members: dict[str, list[str]] = {}
    for task, group in groups.items():
        members.setdefault(group, []).append(task)
    return " | ".join("+".join(tasks) for tasks in members.values())


def _as_json(
    extractions: Any, planned: Any, similarities: Any, advice: "ThresholdAdvice"
) -> dict[str, Any]:
    return {
        "decisions": [
            {
                "task": task,
                "group": group,
                "similarity": decision.similarity,
                "reason": decision.reason,
                "instructions": list(extractions[task].instructions),
            }
            for task, (group, decision) in planned.items()
        ],
        "similarities": dict(
            zip(
                extractions,
                (dict(zip(extractions, row.tolist(), strict=True)) for row in similarities),
                strict=True,
            )
        ),
        "levels": [
            {"above": level.low, "to": level.high, "groups": dict(level.groups)}
            for level in advice.levels
        ],
        "suggested_threshold": advice.threshold,
    }
