"""The worker as a child of the server: at low priority, started again, gone with the server."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

NICE = 10
PAUSES_S = (1.0, 60.0)
"""First and longest pause before a worker that died is started again."""
STOP_S = 10.0
URL = "LCIA_DATABASE"
"""Environment variable of the database: a command line is read by every user of a machine."""


@contextlib.contextmanager
def working(root: Path, *, url: str, options: Sequence[str] = ()) -> Iterator[None]:
    """Keep a worker of the assistant at ``root`` running, with further options of its command."""
    keeper = _Keeper(root, url=url, options=options)
    thread = threading.Thread(target=keeper.keep, name="worker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        keeper.stop()
        thread.join()


class _Keeper:
    def __init__(self, root: Path, *, url: str, options: Sequence[str]) -> None:
        self._command = [sys.executable, "-m", "lcia", "worker", str(root)]
        self._command += ["--nice", str(NICE), "--threads", "1", "--while-stdin"]
        self._command += options
        self._environment = {**os.environ, URL: url, "OMP_NUM_THREADS": "1"}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        pause = PAUSES_S[0]
        while child := self._start():
            code = child.wait()
            if self._over.is_set():
                return
            logger.error("the worker ended with %d; it is started again in %g s", code, pause)
            self._over.wait(pause)
            pause = min(2 * pause, PAUSES_S[1])

    def _start(self) -> "subprocess.Popen[bytes] | None":
        with self._lock:
            if self._over.is_set():
                return None
            # The open pipe says that the server lives: its end, however it comes, closes it.
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, env=self._environment
            )
            return self._child

    def stop(self) -> None:
        with self._lock:
            self._over.set()
            child = self._child
        if child is not None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_S)
            child.kill()


def end_with_stdin() -> None:
    """End this process at once when its standard input does: whoever started it is gone.

    Learning is a transaction; nothing is lost by it.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="server", daemon=True).start()
