"""One process acts, the others wait: what every rank of a distributed run has to agree on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from lcia.distributed.launch import state


def is_main() -> bool:
    """Tell whether this is the process that writes."""
    return bool(state().is_main_process)


def on_main(action: Callable[[], Any]) -> None:
    """Do something on the main process only, while the others wait until it is done."""
    if is_main():
        action()
    state().wait_for_everyone()


def everyone(look: Callable[[], bool]) -> bool:
    """Look at files before any process goes on to change them."""
    seen = look()
    state().wait_for_everyone()
    return seen


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold a file for all processes of this run; yield whether no other run holds it.

    Args:
        path: the file, in a folder that is there; the claim ends with the process that made it.
    """
    lock, ours = FileLock(path, timeout=0), [False]
    if is_main():
        with suppress(Timeout):
            lock.acquire()
            ours = [True]
    state()
    broadcast_object_list(ours)
    try:
        yield ours[0]
    finally:
        lock.release()
