"""One process acts, the others wait: what every rank of a distributed run has to agree on.

They wait on the channel, not in a collective: as long as the work takes, and no longer than any
process lives.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from lcia.distributed.channel import Channel
from lcia.distributed.launch import joined, state

_ALONE: ContextVar[bool] = ContextVar("_ALONE", default=False)
"""Whether the main process acts while the others wait: then nothing is shared with them."""


def is_main() -> bool:
    """Tell whether this is the process that writes."""
    return bool(state().is_main_process)


def together() -> Channel | None:
    """Return the channel to the other processes; None where this one acts alone."""
    return None if _ALONE.get() else joined()


def from_main(action: Callable[[], Any]) -> Any:
    """Do something on the main process only, and return what came of it on every process.

    Args:
        action: returns JSON; within it nothing waits for other processes.
    """
    if _ALONE.get():
        return action()
    found = [None]
    if is_main():
        alone = _ALONE.set(True)
        try:
            found = [action()]
        finally:
            _ALONE.reset(alone)
    channel = joined()
    if channel is not None:
        return channel.meet(found[0])
    broadcast_object_list(found)  # a process group that somebody else made
    return found[0]


def on_main(action: Callable[[], Any]) -> None:
    """Do something on the main process only, while the others wait until it is done."""

    def act() -> None:
        action()

    from_main(act)


def everyone(look: Callable[[], bool]) -> bool:
    """Look at files before any process goes on to change them; all see what the main one sees."""
    return bool(from_main(look))


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a file for all processes of this run; yield whether no other run holds it.

    Args:
        path: the file, in a folder that is there; the claim ends with the process that made it.
    """
    lock = FileLock(path, timeout=0)

    def claim() -> bool:
        with suppress(Timeout):
            lock.acquire()
            return True
        return False

    try:
        yield everyone(claim)
    finally:
        lock.release()
