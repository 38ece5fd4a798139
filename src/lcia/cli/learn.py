"""``lcia learn``: teach an assistant one task."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcia.cli.data import (
    Format,
    Images,
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
from lcia.cli.run import AsJson, Overrides

if TYPE_CHECKING:
    from lcia.cli.console import LearningProgress
    from lcia.config import AssistantConfig
    from lcia.data import Task
    from lcia.learner import ContinualLearner, Outcome, Store


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(learn)


def may_go_on(store: "Store", config: "AssistantConfig") -> bool:
    """Tell whether an assistant has these settings; False if it holds nothing and is made anew.

    Raises:
        ConfigError: it has others, and holds something.
    """
    from lcia.errors import ConfigError
    from lcia.store.transaction import abandoning, unfinished

    differing = store.differing(config.resolved())
    if not differing:
        return True
    begun = unfinished(store)
    if store.versions() == [0] and begun is None:
        return False
    name, (old, new) = next(iter(differing.items()))
    way_out = (
        f"give up the task it has begun ({abandoning(store.root)}) and run this again"
        if begun is not None and store.versions() == [0]
        else "choose another folder"
    )
    raise ConfigError(
        f"{store.root}: was made with {name} = {old}; now it is {new}. Leave out --model and --set "
        f"to go on with its settings, or {way_out}."
    )


def learn(
    store: Annotated[Path, typer.Argument(help="The assistant's folder; made if there is none.")],
    data: Annotated[Path, typer.Argument(help="A data file, a folder of them, or a hub id.")],
    name: Annotated[str, typer.Option("--name", help="Name of the task.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Base model of a new assistant.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", help="chatml, for a base model without a chat template."),
    ] = None,
    test: Test = None,
    scorer: Scorer = "exact_match",
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="Where prompts say what to do.")
    ] = None,
    max_new_tokens: LongestAnswer = 32,
    reader: Format = None,
    role: Role = None,
    images: Images = None,
    split: Split = None,
    test_split: Annotated[
        str | None, typer.Option("--test-split", help="The part that is only scored.")
    ] = None,
    columns: Map = None,
    turns: Turns = None,
    overrides: Overrides = [],  # noqa: B006  typer's form of a repeated option
    as_json: AsJson = False,
) -> None:
    """Teach an assistant one task, as a transaction.

    Killed at any moment, the assistant is as it was, and the same command continues.

    Examples:

      lcia learn assistant tickets.jsonl --name tickets --model smollm2-135m

      lcia learn assistant tickets.jsonl --name tickets --model org/base --template chatml

      lcia learn assistant refunds.jsonl --name refunds --test refunds-test.jsonl

      lcia learn assistant chats.jsonl --name chats --role bot=assistant

      lcia learn assistant user/name --name faq --split train --map prompt=question,answer=reply
    """
    from lcia.cli.console import LearningProgress
    from lcia.config import parse_config
    from lcia.data import TaskConfig, load_task
    from lcia.distributed.launch import join, logs_beside
    from lcia.distributed.processes import is_main
    from lcia.learner import check_task

    tree: dict[str, Any] = {"name": name, "train": data, "test": test, "scorer": scorer}
    tree |= {"instruction": instruction, "images": images, "max_new_tokens": max_new_tokens}
    tree |= {"format": reader, "roles": roles_of(role), "map": columns_of(columns)}
    tree |= {"split": split, "test_split": test_split, "turns": turns and turns.value}
    task = load_task(parse_config(TaskConfig, tree, where="lcia learn"))
    check_task(task)
    if template is not None:
        overrides = [*overrides, f"generation.chat_template={template}"]
    with LearningProgress(quiet=as_json) as progress:
        learner = _learner(store, model, overrides, first=task, listener=progress)
        join(learner.config.training, logs=logs_beside(store))
        outcome = learner.learn(task)
    if is_main():
        tell(outcome, store, as_json=as_json)


def _learner(
    store: Path,
    model: str | None,
    overrides: Sequence[str],
    *,
    first: "Task",
    listener: "LearningProgress",
) -> "ContinualLearner":
    """Open an assistant, or make one if there is none."""
    from lcia.config import AssistantConfig, parse_config
    from lcia.errors import ConfigError
    from lcia.learner import ContinualLearner, Store

    opened = Store.open(store) if (store / "assistant.json").exists() else None
    if model is None and opened is None:
        raise ConfigError(f"{store}: is a new assistant; say --model, e.g. smollm2-135m.")
    config = None
    if model is not None or overrides:
        tree = {"model": opened.config.model if model is None and opened else model}
        config = parse_config(AssistantConfig, tree, where="lcia learn", overrides=overrides)
    if opened is not None and (config is None or may_go_on(opened, config)):
        return ContinualLearner(opened, listener=listener)
    assert config is not None, "a new assistant has a model"
    return ContinualLearner.create(store, config, first=first, listener=listener)


def tell(outcome: "Outcome", store: Path, *, as_json: bool) -> None:
    """Print what learning led to."""
    from lcia.cli.console import console, number, print_json, print_table
    from lcia.reports.numbers import duration

    if as_json:
        print_json(asdict(outcome))
        return
    rows = [
        [other, number(outcome.before[other]), number(after)]
        for other, after in outcome.scores.items()
    ]
    print_table("Scores in percent", ["task", "before", "after"], rows)
    if outcome.choice is not None:
        show_choice(outcome.choice)
    for check in outcome.gate:
        console.print(gate_line(check), markup=False)
    console.print(
        f"\n{outcome.task} is learned: version {outcome.version}, group {outcome.group} "
        f"({outcome.reason}), {duration(outcome.seconds)}.\nTry: lcia chat {store}",
        markup=False,
    )


def gate_line(check: Mapping[str, Any]) -> str:
    """Return what one check of the gate found."""
    return f"{'passes' if check['passed'] else 'fails'}: {check['why']}"


def show_choice(choice: Mapping[str, Any]) -> None:
    """Print what a retrained group might have become, by validation samples, and what it did."""
    from lcia.cli.console import console, print_table

    if any("quality" not in row for row in choice["table"]):
        return  # of an earlier lcia, in other units
    tasks = list(choice["samples"])
    rows = [
        [
            f"{row['name']} *" if row["name"] == choice["chosen"] else row["name"],
            *(f"{100 * row['quality'][task]:.1f}" for task in tasks),
            f"{100 * row['score']:.1f}",
            ", ".join(row["harmed"]) or "none",
        ]
        for row in choice["table"]
    ]
    title = "Candidates: quality of answers to validation samples, 0 to 100"
    print_table(title, ["candidate", *tasks, "score", "harmed"], rows)
    console.print(f"* chosen: {choice['why']}.", markup=False)
