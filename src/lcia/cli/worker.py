"""``lcia worker``: learn what is in an assistant's queue."""

from typing import Annotated, Any

import typer

from lcia.cli.serve import AcceptNew, ConsolidateAfter, DatabaseUrl, LearnWhen, log_with_times
from lcia.cli.store import StorePath


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(worker)


def worker(
    store: StorePath,
    database: DatabaseUrl = None,
    once: Annotated[bool, typer.Option("--once", help="End when no job is left.")] = False,
    poll: Annotated[float, typer.Option(help="Seconds between two looks into the queue.")] = 1.0,
    nice: Annotated[int, typer.Option(help="Lower the process's priority by so much.")] = 0,
    threads: Annotated[
        int | None, typer.Option(help="Threads of a computation; default: the machine's.", min=1)
    ] = None,
    learn_when: LearnWhen = "manual",
    accept_new: AcceptNew = False,
    consolidate_after: ConsolidateAfter = None,
    while_stdin: Annotated[
        bool, typer.Option("--while-stdin", help="End at once when standard input does.")
    ] = False,
) -> None:
    """Work on the fine-tuning jobs of an assistant: see 'lcia serve --learn'.

    Killed at any moment, its job goes on when a worker is started again, with the same result.

    Examples:

      lcia worker assistant

      lcia worker assistant --once
    """
    import os

    from lcia.live.worker import end_with_stdin
    from lcia.serving import check_installed

    check_installed("live")
    log_with_times()
    if while_stdin:
        end_with_stdin()
    os.nice(nice)
    import torch

    from lcia.live.database import Database
    from lcia.live.feedback.teaching import Policy
    from lcia.live.worker import Worker

    policy = Policy.parse(learn_when, accept=accept_new)

    if threads is not None:
        torch.set_num_threads(threads)
    opened = Database(store, database)
    asked: dict[str, Any] = {"policy": policy, "consolidate_after": consolidate_after}
    Worker(store, opened, poll_s=poll, **asked).run(until_empty=once)
