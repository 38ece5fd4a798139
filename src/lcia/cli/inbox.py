"""``lcia inbox``: what people said about answers, and the job that learns their corrections."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcia.cli.run import AsJson
from lcia.cli.serve import DatabaseUrl
from lcia.cli.store import StorePath
from lcia.errors import ConfigError

if TYPE_CHECKING:
    from lcia.live.inbox import Inbox

Number = Annotated[int, typer.Argument(help="See 'lcia inbox list'.")]
Numbers = Annotated[list[int] | None, typer.Argument(help="See 'lcia inbox list'.")]
All = Annotated[bool, typer.Option("--all", help="All new ones; to accept, with a correction.")]

inbox = typer.Typer(help="Decide on people's corrections and learn them.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.add_typer(inbox, name="inbox")


@inbox.callback()
def _inbox() -> None:
    """Decide on people's corrections and learn them: see 'lcia serve --feedback'."""


@inbox.command("list")
def list_(
    store: StorePath,
    state: Annotated[
        str | None, typer.Option(help="Only those: new, accepted, rejected or taught.")
    ] = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """List what people said, the oldest first.

    Examples:

      lcia inbox list assistant

      lcia inbox list assistant --state new
    """
    opened = _opened(store, database)
    from lcia.cli.console import console, print_json, print_table
    from lcia.live.feedback.teaching import marked
    from lcia.live.inbox import STATES

    if state is not None and state not in STATES:
        raise ConfigError(f"--state: found {state!r}; expected one of {', '.join(STATES)}.")
    entries = opened.listed()
    marks = marked(entries)
    entries = [
        {**entry, "mark": marks.get(entry["number"])}
        for entry in entries
        if state in (None, entry["state"])
    ]
    if as_json:
        print_json(entries)
        return
    rows = [
        [
            str(entry["number"]),
            entry["state"],
            _version(entry),
            _sign(entry),
            *_texts(entry),
            entry["mark"] or "",
        ]
        for entry in entries
    ]
    columns = ["", "state", "answered by", "", "prompt", "said", ""]
    print_table(str(store), columns, rows, left=range(len(columns)))
    counts = opened.counts().items()
    console.print(", ".join(f"{count} {state}" for state, count in counts), markup=False)


@inbox.command()
def show(
    store: StorePath, number: Number, database: DatabaseUrl = None, as_json: AsJson = False
) -> None:
    """Show all that is known of one entry.

    Examples:

      lcia inbox show assistant 3
    """
    from lcia.cli.console import console, print_json

    entry = _opened(store, database).get(number)
    if as_json:
        print_json(entry)
        return
    told = {**entry, "prompt": None}
    for turn in entry["prompt"] or ():
        console.print(f"{turn['role']}: {turn['content']}", markup=False)
    for name, value in told.items():
        if value is not None:
            console.print(f"{name}: {value}", markup=False)


@inbox.command()
def accept(
    store: StorePath,
    numbers: Numbers = None,
    all_: Annotated[
        bool, typer.Option("--all", help="All new ones with a correction, but those marked.")
    ] = False,
    database: DatabaseUrl = None,
) -> None:
    """Accept corrections: 'lcia inbox learn' teaches them.

    Those that 'lcia inbox list' marks, as they say the same as another one or contradict it, are
    accepted by their number alone.

    Examples:

      lcia inbox accept assistant 3 4

      lcia inbox accept assistant --all
    """
    _decide(store, numbers, "accepted", all_=all_, database=database)


@inbox.command()
def reject(
    store: StorePath,
    numbers: Numbers = None,
    all_: All = False,
    database: DatabaseUrl = None,
) -> None:
    """Reject entries: they stay listed and are not taught.

    Examples:

      lcia inbox reject assistant 5
    """
    _decide(store, numbers, "rejected", all_=all_, database=database)


@inbox.command()
def edit(
    store: StorePath,
    number: Number,
    correction: Annotated[str, typer.Option(help="What should have been answered.")],
    prompt: Annotated[
        str | None, typer.Option(help="What was asked, if the entry does not hold it.")
    ] = None,
    database: DatabaseUrl = None,
) -> None:
    """Write an entry's correction anew; its state stays.

    Examples:

      lcia inbox edit assistant 3 --correction "Refunds take five days."
    """
    from lcia.cli.console import console

    _opened(store, database).edit(number, correction, prompt=prompt)
    console.print(f"Feedback {number}: the correction is changed.", markup=False)


@inbox.command()
def learn(
    store: StorePath,
    name: Annotated[
        str | None, typer.Option(help="The task's name; default: one that is made up.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="At most so many; default: until it is taught.", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the assistant's.", min=0)] = None,
    database: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Queue a job that learns all accepted corrections; a worker takes it.

    Where several groups answer them, each of those gets a job.

    Examples:

      lcia inbox learn assistant --name corrections-may
    """
    opened = _opened(store, database)
    from lcia.cli.console import console, print_json
    from lcia.learner import Store
    from lcia.live.feedback.teaching import teach
    from lcia.live.orders import AUTO, OrderError

    wanted = AUTO if epochs is None else {**AUTO, "n_epochs": epochs}
    try:
        made = teach(
            Store.open(store), opened.database, name=name, seed=seed, hyperparameters=wanted
        )
    except OrderError as error:
        raise ConfigError(str(error).replace("'suffix'", "--name")) from error
    if as_json:
        told = ("id", "task", "status", "training_file", "seed", "hyperparameters")
        print_json([{key: job[key] for key in told} for job in made])
        return
    for job in made:
        console.print(f"Job {job['id']} learns {job['task']}.", markup=False)
    console.print(
        f"A server with --learn works on it, or:\nlcia worker {store} --once", markup=False
    )


def _opened(store: Path, database: str | None) -> "Inbox":
    from lcia.serving import check_installed

    check_installed("live")
    from lcia.errors import StoreError
    from lcia.learner import Store
    from lcia.live.database import NAME, Database
    from lcia.live.inbox import Inbox

    Store.open_unchecked(store)
    if database is None and not (store / NAME).exists():
        raise StoreError(
            f"{store}: nobody gave feedback yet, so there is no inbox. 'lcia serve {store} "
            "--feedback' takes it."
        )
    return Inbox(Database(store, database))


def _decide(
    store: Path, numbers: list[int] | None, state: str, *, all_: bool, database: str | None
) -> None:
    from lcia.cli.console import console

    if bool(numbers) == all_:
        raise ConfigError("Expected numbers of entries, as 'lcia inbox list' shows them, or --all.")
    opened = _opened(store, database)
    left: list[int] = []
    if all_ and state == "accepted":
        from lcia.live.feedback.teaching import marked

        left = sorted(marked(opened.listed()))
    done = opened.decide(numbers, state, besides=left)
    console.print(f"{done} {state}.", markup=False)
    if left:
        named = ", ".join(map(str, left))
        console.print(f"To look at: {named}. See 'lcia inbox list {store}'.", markup=False)


def _version(entry: dict[str, Any]) -> str:
    if entry["version"] is None:
        return "–"
    return f"version {entry['version']}, {entry['group'] or 'base model'}"


def _sign(entry: dict[str, Any]) -> str:
    return {1: "+", -1: "-"}.get(entry["rating"], "")


def _texts(entry: dict[str, Any]) -> list[str]:
    """Return the beginnings of the last turn and of what was said about its answer."""
    asked = entry["prompt"][-1]["content"] if entry["prompt"] else ""
    said = entry["correction"] or entry["comment"] or ""
    return [" ".join(text.split())[:40] for text in (asked, said)]
