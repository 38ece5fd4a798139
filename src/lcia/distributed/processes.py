"""What the ranks of a distributed run agree on, and work that they share.

Where one process acts, the others wait on the channel, not in a collective: as long as the work
takes, and no longer than any process lives. Shared work is handed out piece by piece: a process
that is slow gets less. The main process keeps what comes back in the threads of its channel, so
that nobody waits for it while it does a piece itself.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from lcia.distributed.channel import Channel, Message
from lcia.distributed.launch import joined, state
from lcia.errors import ConfigError, TrainingError

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


TOPIC = "work"

PATIENCE_S = 600.0
SLOW = 20.0
"""A piece may take ``SLOW`` times as long as the slowest of its size, and ``PATIENCE_S`` more."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Work for one process at a time.

    Attributes:
        job: what is to be done; JSON.
        needs: what a process has to load for it.
        cost: how long it takes at most, in any unit.
    """

    job: Any
    needs: frozenset[str]
    cost: float


class Work:
    """Pieces, and who is at which; on the main process.

    Args:
        pieces: each is done once.
        keep: called with the job and its result as it comes, one at a time, in any thread.
        patience_s: see ``PATIENCE_S``.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        keep: Callable[[Any, Any], None],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._left = sorted(pieces, key=lambda piece: -piece.cost)  # long ones first: no tail
        self._keep = keep
        self._patience_s = patience_s
        self._at: dict[int, tuple[Piece, float]] = {}
        self._loaded: dict[int, set[str]] = {}
        self._pace = 0.0
        self._lock = threading.Lock()

    def answer(self, rank: int, message: Message) -> Message | None:
        """Take a result, if a message brings one, and return the next piece for a rank.

        Raises:
            TrainingError: a rank has been at its piece for too long.
        """
        with self._lock:
            if rank in self._at and "result" in message:
                piece, begun = self._at.pop(rank)
                self._pace = max(self._pace, (time.monotonic() - begun) / piece.cost)
                self._keep(piece.job, message["result"])
            if not (self._left or self._at):
                return {"over": True}
            if not self._left:
                self._check_pace()
                return None
            piece = min(self._left, key=partial(self._loads, rank))
            self._left.remove(piece)
            self._loaded.setdefault(rank, set()).update(piece.needs)
            self._at[rank] = (piece, time.monotonic())
            return {"job": piece.job}

    def _loads(self, rank: int, piece: Piece) -> tuple[int, int]:
        """Order pieces: what a rank has loaded first, then what no other rank has."""
        others = [loaded for other, loaded in self._loaded.items() if other != rank]
        shared = piece.needs & set().union(*others)
        return len(piece.needs - self._loaded.get(rank, set())), len(shared)

    def _check_pace(self) -> None:
        for rank, (piece, begun) in self._at.items():
            took, usual = time.monotonic() - begun, self._pace * piece.cost
            if self._pace and took > self._patience_s + SLOW * usual:
                raise TrainingError(
                    f"Process {rank} has been at one batch for {took:.0f} s, and others took at "
                    f"most {usual:.0f} s for as much: it hangs. Run the same command again to "
                    "continue; what has been answered is kept."
                )


def share(
    do: Callable[[Any], Any],
    work: Work | None,
    *,
    channel: Channel | None,
    of: str = "",
    after_each: Callable[[], None] = lambda: None,
) -> None:
    """Do pieces of work until all are done, on all processes; every process calls it.

    Args:
        do: job to result, both JSON.
        work: on the main process; None on the others.
        channel: between the processes; None where there is one.
        of: what all processes have to agree on.
        after_each: called whenever this process has done a piece.

    Raises:
        ConfigError: this process has other work before it than the main one.
    """
    if channel is None:
        assert work is not None, "one process is the main one"
        ask = partial(_ask_oneself, work)
    else:
        if work is not None:
            channel.serve(TOPIC, work.answer)
        if channel.meet(of) != of:
            raise ConfigError(
                "has other samples or settings than process 0. Start all processes with the same "
                "command, on the same files."
            )
        ask = partial(channel.request, TOPIC)
    reply = ask()
    while "job" in reply:
        result = do(reply["job"])
        reply = ask(result=result)
        after_each()
    if channel is not None:
        channel.meet()


def _ask_oneself(work: Work, **message: Any) -> Message:
    reply = work.answer(0, message)
    assert reply is not None, "nobody else is at a piece"
    return reply
