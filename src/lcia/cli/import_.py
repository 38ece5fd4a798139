"""``lcia import``: a PEFT adapter that was trained elsewhere becomes a group."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lcia.cli.data import (
    Format,
    LongestAnswer,
    Map,
    Role,
    Scorer,
    Split,
    Test,
    Turns,
    columns_of,
    roles_of,
)
from lcia.cli.run import AsJson
from lcia.cli.store import StorePath


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("import")(import_)


def import_(
    store: StorePath,
    adapter: Annotated[Path, typer.Argument(help="A PEFT adapter's folder.")],
    name: Annotated[str, typer.Option("--name", help="Name of the group and of its task.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="What it was trained on; a fifth is scored.")
    ] = None,
    test: Test = None,
    instruction: Annotated[
        list[str] | None, typer.Option("--instruction", help="What its prompts say to do.")
    ] = None,
    scorer: Scorer = "exact_match",
    max_new_tokens: LongestAnswer = 32,
    reader: Format = None,
    role: Role = None,
    split: Split = None,
    columns: Map = None,
    turns: Turns = None,
    as_json: AsJson = False,
) -> None:
    """Make a PEFT LoRA adapter a group of an assistant, as a new version.

    With its data it gets scores like a task that was learned. Without, it answers what
    --instruction says and stays unmeasured. 'lcia rollback' takes it back.

    Examples:

      lcia import assistant ./adapter --name legacy --data old.jsonl

      lcia import assistant ./adapter --name legacy --instruction "Translate into German."
    """
    from lcia.cli.console import LearningProgress, console, print_json
    from lcia.cli.learn import tell
    from lcia.config import parse_config
    from lcia.data import TaskConfig, load_task
    from lcia.learner import ContinualLearner, Store, check_task, import_adapter, import_with_data
    from lcia.learner.importing import recipe_of

    given = instruction or []
    if data is None:
        learner = ContinualLearner(Store.open(store))
        version = import_adapter(learner, adapter, name=name, instructions=given)
        group = next(group.id for group in version.codebook().groups if group.name == name)
        if as_json:
            print_json({"version": version.number, "group": group, "name": name, "measured": False})
            return
        console.print(
            f"{name} is group {group} of version {version.number}, unmeasured: it has no data.",
            markup=False,
        )
        return
    tree: dict[str, Any] = {"name": name, "train": data, "test": test, "scorer": scorer}
    tree |= {"max_new_tokens": max_new_tokens, "format": reader, "roles": roles_of(role)}
    tree |= {"split": split, "map": columns_of(columns), "turns": turns and turns.value}
    tree |= {"instruction": recipe_of(given) if given else None}
    task = load_task(parse_config(TaskConfig, tree, where="lcia import"))
    check_task(task)
    with LearningProgress(quiet=as_json) as progress:
        learner = ContinualLearner(Store.open(store), listener=progress)
        outcome = import_with_data(learner, adapter, task)
    tell(outcome, store, as_json=as_json)
