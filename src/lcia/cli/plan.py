"""``lcia plan``: which task would go to which group, before any training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lcia.cli.run import AsJson, Overrides


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(plan)


def plan(
    stream: Annotated[Path, typer.Argument(help="A stream file (YAML).")],
    overrides: Overrides = [],  # noqa: B006  typer's form of a repeated option
    as_json: AsJson = False,
) -> None:
    """Show which task of a stream would join which group, and how similar the tasks are.

    Examples:

      lcia plan stream.yaml

      lcia plan stream.yaml --set grouping.threshold=0.5
    """
    from lcia.cli.console import console, number, print_json, table
    from lcia.config import load_stream_config
    from lcia.experiments import stream_tasks
    from lcia.grouping import GroupingConfig

    config = load_stream_config(stream, overrides)
    tasks = stream_tasks(config, base=stream.parent)
    grouping = config.grouping or GroupingConfig()
    decisions, extractions = _decide(tasks, grouping)
    matrix = _similarities(extractions, grouping)
    if as_json:
        print_json({"decisions": decisions, "similarities": matrix})
        return
    rows = [
        [d["task"], d["group"], number(d["similarity"], 2), d["reason"], d["instructions"][0][:60]]
        for d in decisions
    ]
    console.print(
        table(
            f"Groups at threshold {grouping.threshold:g} ({grouping.similarity}, "
            f"{grouping.aggregate})",
            ["task", "group", "similarity", "reason", "instruction"],
            rows,
        )
    )
    rows = [[name, *(number(s, 2) for s in row.values())] for name, row in matrix.items()]
    console.print()
    console.print(table("Similarity of tasks", ["task", *matrix], rows))


def _decide(tasks: Any, grouping: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    from lcia.grouping import InstructionCodebook
    from lcia.learner import instructions_of

    codebook = InstructionCodebook(grouping)
    decisions, extractions = [], {}
    for task in tasks:
        extraction = instructions_of(task)
        extractions[task.name] = extraction
        decision = codebook.decide(extraction.instructions)
        group = codebook.add(decision.group, extraction, task=task.name)
        decisions.append(
            {
                "task": task.name,
                "group": group,
                "similarity": decision.similarity,
                "reason": decision.reason,
                "instructions": list(extraction.instructions),
            }
        )
    return decisions, extractions


def _similarities(extractions: dict[str, Any], grouping: Any) -> dict[str, dict[str, float]]:
    from lcia.grouping import InstructionCodebook

    table: dict[str, dict[str, float]] = {name: {} for name in extractions}
    for stored, extraction in extractions.items():
        codebook = InstructionCodebook(grouping)
        group = codebook.add(None, extraction, task=stored)
        for name, other in extractions.items():
            table[name][stored] = codebook.similarities(other.instructions)[group]
    return table
