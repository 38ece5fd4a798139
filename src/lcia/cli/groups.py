"""``lcia groups``: look at adapter groups and change them; every change is a version."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcia.cli.store import AsJson, StorePath

if TYPE_CHECKING:
    from lcia.learner import ContinualLearner, Version

GroupId = Annotated[str, typer.Argument(help="Id of a group, such as g1.")]

groups = typer.Typer(help="Show, match and change adapter groups.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(groups, name="groups")


@groups.callback()
def _group() -> None:
    """Show, match and change adapter groups. 'lcia rollback' takes any change back."""


@groups.command()
def show(store: StorePath, as_json: AsJson = False) -> None:
    """List the groups with their tasks and instructions.

    Examples:

      lcia groups show assistant
    """
    from lcia.cli.console import print_json, print_table
    from lcia.learner import Store

    current = Store.open(store).current
    records = [
        {**group.summary(), "measured": _measured(group, current.manifest["tasks"])}
        for group in current.codebook().groups
    ]
    if as_json:
        print_json(records)
        return
    rows = [
        [
            r["id"],
            r["name"]
            + (" (retired)" if r["retired"] else "")
            + ("" if r["measured"] else " (unmeasured)"),
            ", ".join(r["tasks"]),
            f"{len(r['instructions'])}: {r['instructions'][0][:60]}",
        ]
        for r in records
    ]
    columns = ["group", "name", "tasks", "instructions"]
    print_table(str(store), columns, rows, left=range(len(columns)))


@groups.command()
def match(
    store: StorePath,
    prompt: Annotated[str, typer.Argument(help="A prompt, as a user would type it.")],
    as_json: AsJson = False,
) -> None:
    r"""Say which group a prompt would be routed to, and why; nothing is generated.

    Examples:

      lcia groups match assistant "May 3\n\nTranslate into German."
    """
    from dataclasses import asdict

    from lcia.cli.console import console, number, print_json
    from lcia.grouping import Router
    from lcia.learner import Store

    router = Router(Store.open(store).current.codebook())
    explanation = router.explain(prompt.replace("\\n", "\n"))
    if as_json:
        print_json(asdict(explanation))
        return
    decision = explanation.decision
    console.print(f"group:       {decision.group or 'base model'}", markup=False)
    console.print(f"reason:      {decision.reason}", markup=False)
    console.print(f"similarity:  {number(decision.similarity, 3)} to {decision.nearest}")
    runner_up = f"{decision.runner_up} {number(decision.runner_up_similarity, 3)}"
    console.print(f"runner-up:   {runner_up}", markup=False)
    console.print(f"compared:    {decision.instruction}", markup=False)


@groups.command()
def merge(
    store: StorePath,
    group: GroupId,
    other: Annotated[str, typer.Argument(help="The group that goes into GROUP.")],
    weight: Annotated[float, typer.Option(help="Share of GROUP's adapter.")] = 0.5,
    combination: Annotated[str, typer.Option(help="svd, linear or cat.")] = "svd",
) -> None:
    """Merge the adapter and the instructions of OTHER into GROUP, and score all tasks again.

    Examples:

      lcia groups merge assistant g1 g3 --weight 0.7
    """
    from lcia.learner import merge_groups

    _change(
        store,
        lambda learner: merge_groups(learner, group, other, weight=weight, combination=combination),
    )


@groups.command()
def consolidate(
    store: StorePath,
    all_pairs: Annotated[
        bool, typer.Option("--all", help="Try every two groups; else those of one instruction.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only measure.")] = False,
    as_json: AsJson = False,
) -> None:
    """Join groups that one adapter replaces without harm to any task.

    A merge of both adapters is trained on what both groups remember, and measured on the validation
    samples that stay with them. What is taken is a version.

    Examples:

      lcia groups consolidate assistant --dry-run
    """
    from dataclasses import asdict

    from lcia.cli.console import console, print_json
    from lcia.learner import ContinualLearner, Joining, Store
    from lcia.learner import consolidate as join

    opened = Store.open(store)
    before = opened.current_number

    def tell(joining: Joining) -> None:
        pair = f"{joining.group} and {joining.other}"
        verb = "stay" if joining.why_not else "can be joined" if dry_run else "joined"
        why = f": {joining.why_not}" if joining.why_not else ""
        console.print(f"{pair} {verb}{why}", markup=False)
        for task, quality in joining.before.items():
            told = f"  {task}: quality {quality:.3f} apart, {joining.after[task]:.3f} as one"
            console.print(told, markup=False)

    learner = ContinualLearner(opened)
    found = join(
        learner,
        all_pairs=all_pairs,
        dry_run=dry_run,
        tell=(lambda joining: None) if as_json else tell,
    )
    if as_json:
        print_json([asdict(joining) for joining in found])
        return
    if not found:
        console.print("Nothing to join: no two groups share an instruction.", markup=False)
    if opened.current_number != before:
        console.print(f"Back: lcia rollback {store} {before}", markup=False)


@groups.command()
def split(
    store: StorePath,
    group: GroupId,
    task: Annotated[list[str], typer.Option("--task", help="A task to move; repeatable.")],
) -> None:
    """Move tasks of a group into a new group that starts with the same adapter.

    Examples:

      lcia groups split assistant g1 --task sentiments
    """
    from lcia.learner import split_group

    _change(store, lambda learner: split_group(learner, group, task))


@groups.command()
def rename(
    store: StorePath, group: GroupId, name: Annotated[str, typer.Argument(help="Its new name.")]
) -> None:
    """Give a group a name; its id stays.

    Examples:

      lcia groups rename assistant g1 german
    """
    from lcia.learner import rename_group

    _change(store, lambda learner: rename_group(learner, group, name))


@groups.command()
def retire(
    store: StorePath,
    group: GroupId,
    undo: Annotated[bool, typer.Option("--undo", help="Take the group back.")] = False,
) -> None:
    """Keep a group but neither reuse it nor route to it.

    Examples:

      lcia groups retire assistant g2

      lcia groups retire assistant g2 --undo
    """
    from lcia.learner import retire_group

    _change(store, lambda learner: retire_group(learner, group, retired=not undo))


def _change(store: Path, change: Callable[["ContinualLearner"], "Version"]) -> None:
    from lcia.cli.console import console
    from lcia.cli.evaluate import print_matrix
    from lcia.learner import ContinualLearner, Store

    opened = Store.open(store)
    before = opened.current_number
    version = change(ContinualLearner(opened))
    print_matrix(version.matrix(), title=f"version {version.number}")
    if version.number == before:
        console.print(f"\nNothing to change: version {before} has it so.", markup=False)
        return
    console.print(f"\n{version.manifest['note']}: version {version.number}.", markup=False)
    console.print(f"Back: lcia rollback {store} {version.manifest['parent']}", markup=False)


def _measured(group: Any, tasks: Mapping[str, str]) -> bool:
    """Whether any task of a group has held-out samples: an imported adapter may have none."""
    return any(task.name in tasks for task in group.tasks)
