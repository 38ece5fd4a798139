"""An assistant's history: ``lcia versions``, ``rollback``, ``prune``, ``verify`` and others."""

from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
StorePath = Annotated[Path, typer.Argument(help="An assistant's folder.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(versions)
    app.command()(rollback)
    app.command()(prune)
    app.command()(verify)
    app.command()(abandon)
    app.command()(accept)


def versions(store: StorePath, as_json: AsJson = False) -> None:
    """List the versions of an assistant, and the candidates that its gate refused.

    Examples:

      lcia versions assistant
    """
    from lcia.cli.console import console, number, print_json, print_table
    from lcia.learner import Store
    from lcia.store.transaction import refused, unfinished

    opened = Store.open(store)
    current = opened.current.number
    records = [
        _record(opened.past(n).manifest, current=current) | {"pruned": n in opened.pruned}
        for n in opened.numbers()
    ]
    records += [_refusal(run, report) for run, report in refused(opened).values()]
    if as_json:
        print_json(records)
        return
    rows = [
        [
            f"{'*' if record['current'] else ' '} {record['version']}",
            (record["task"] or record["note"] or "(empty)") + " (pruned)" * record["pruned"],
            record["group"] or "",
            number(record["average_accuracy"]) if not record["refused"] else "refused",
        ]
        for record in records
    ]
    print_table(str(store), ["version", "task", "group", "Avg.ACC"], rows, left=(0, 1, 2))
    for record in records:
        if record["refused"]:
            console.print(f"{record['version']}: {record['refused']}", markup=False)
    if run := unfinished(opened):
        console.print(f"Unfinished: {run.task} (version {run.number}).", markup=False)


def rollback(
    store: StorePath, version: Annotated[int, typer.Argument(help="See 'lcia versions'.")]
) -> None:
    """Make an earlier version the current one; nothing is deleted.

    Examples:

      lcia rollback assistant 2
    """
    from lcia.cli.console import console
    from lcia.learner import Store

    Store.open_unchecked(store).roll_back(version)  # the current one may be damaged
    console.print(f"{store}: version {version} is current.", markup=False)


def prune(
    store: StorePath,
    keep_last: Annotated[
        int, typer.Option("--keep-last", help="Keep so many of the newest versions.", min=1)
    ] = 1,
    keep_every: Annotated[
        int | None, typer.Option("--keep-every", help="And each so many-th version.", min=1)
    ] = None,
    pin: Annotated[
        list[int] | None,
        typer.Option("--pin", help="And this version, now and from now on. May be repeated."),
    ] = None,
    unpin: Annotated[
        list[int] | None, typer.Option("--unpin", help="No longer keep a version pinned before.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without, only say what.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove versions you will not go back to, with the adapters and samples that they alone have.

    The current version stays, the one before it, and those that an unfinished task or a refused
    candidate builds on. Of versions that led to a kept one, scores, answers and journal stay.

    Examples:

      lcia prune assistant --keep-last 5

      lcia prune assistant --keep-last 5 --keep-every 10 --yes

      lcia prune assistant --keep-every 100 --pin 42 --yes
    """
    from lcia.cli.console import console, print_json
    from lcia.learner import Store
    from lcia.reports.numbers import size
    from lcia.store.prune import plan
    from lcia.store.prune import prune as remove

    opened = Store.open(store)
    pruning = (remove if yes else plan)(
        opened,
        keep_last=keep_last,
        keep_every=keep_every,
        pin=tuple(pin or ()),
        unpin=tuple(unpin or ()),
    )
    if as_json:
        names = {
            key: [path.relative_to(store).as_posix() for path in getattr(pruning, key)]
            for key in ("folders", "emptied")
        }
        print_json({**vars(pruning), **names, "done": yes})
        return
    lines = [
        f"keeps {_listed(pruning.kept)}",
        f"pinned: {_listed(pruning.pinned)}",
        f"keeps scores, answers and journal, without adapters, of {_listed(pruning.told)}",
        f"removes {_listed(pruning.removed)}",
        f"removes {len(pruning.folders)} folders of adapters and samples",
    ]
    if pruning.emptied:
        lines.append(
            f"empties {len(pruning.emptied)} files of prompts and answers: samples were forgotten"
        )
    for line in lines:
        console.print(line, markup=False)
    freed = size(pruning.size_bytes)
    console.print(f"{freed} freed." if yes else f"{freed} to free: add --yes.", markup=False)


def verify(
    store: StorePath,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Leave safetensors unread: seconds, not minutes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every file of an assistant with the checksum it was stored with.

    Names file, version and what to do, one line a finding; exits with 1 if there is one. Of a task
    that is unfinished, what it would resume from is checked.

    Examples:

      lcia verify assistant

      lcia verify assistant --no-weights
    """
    from lcia.cli.console import Bar, console, print_json
    from lcia.errors import DamageError, StoreError
    from lcia.store.verify import verify as find

    if not any((store / name).exists() for name in ("assistant.json", "versions")):
        raise StoreError(f"{store}: is not an assistant (no assistant.json).")
    with Bar(quiet=as_json, sizes=True) as bar:
        findings = find(
            store,
            weights=not no_weights,
            progress=lambda done, total: bar.show("reading", done, total),
        )
    if as_json:
        print_json({"findings": findings})
    if findings:
        raise DamageError("\n".join(findings))
    if not as_json:
        console.print(f"{store}: every file is as it was stored.", markup=False)


def abandon(
    store: StorePath,
    refused: Annotated[
        int | None,
        typer.Option("--refused", help="Remove this refused candidate; see 'lcia versions'."),
    ] = None,
) -> None:
    """Give up the task that is unfinished: what is done of it is removed, the versions stay.

    Examples:

      lcia abandon assistant

      lcia abandon assistant --refused 5
    """
    from lcia.cli.console import console
    from lcia.learner import Store
    from lcia.store.transaction import abandon as give_up
    from lcia.store.transaction import forget_refused

    opened = Store.open_unchecked(store)
    run = give_up(opened) if refused is None else forget_refused(opened, refused)
    console.print(f"{store}: {run.task} (version {run.number}) is given up.", markup=False)


def accept(
    store: StorePath,
    candidate: Annotated[int, typer.Argument(help="See 'lcia versions'.")],
    reason: Annotated[str | None, typer.Option(help="Why; the version keeps it.")] = None,
) -> None:
    """Make a candidate that the gate refused the current version after all.

    Examples:

      lcia accept assistant 5 --reason "the held-out samples are out of date"
    """
    from lcia.cli.console import console
    from lcia.learner import Store
    from lcia.store.transaction import accept as take

    version = take(Store.open(store), candidate, reason=reason)
    console.print(
        f"{store}: version {version.number} is current.\n"
        f"Back: lcia rollback {store} {version.manifest['parent']}",
        markup=False,
    )


def _listed(numbers: list[int]) -> str:
    """Write version numbers with runs of them as ``2 to 9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    written = (f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
    return f"versions {', '.join(written)}" if runs else "no version"


def _record(manifest: Any, *, current: int) -> dict[str, Any]:
    return {
        "version": manifest["version"],
        "parent": manifest["parent"],
        "task": manifest["task"],
        "note": manifest.get("note"),
        "group": manifest.get("group"),
        "average_accuracy": manifest.get("metrics", {}).get("average_accuracy"),
        "current": manifest["version"] == current,
        "refused": None,
    }


def _refusal(run: Any, report: Any) -> dict[str, Any]:
    return {
        "version": run.number,
        "parent": run.parent,
        "task": run.task,
        "note": None,
        "group": None,
        "average_accuracy": None,
        "current": False,
        "refused": report["why"],
        "pruned": False,
    }
