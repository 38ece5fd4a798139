"""What processes other than the main one print: into a file each, not on the terminal."""

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcia.distributed.channel import LAST_WORDS, say
from lcia.distributed.launch import joined, start

LOG = "process-{rank}.log"
"""Name of a process's file in the folder of logs."""

UNJOINED_S = 12.0
"""How long an error from before the processes joined waits for the main process to print it."""


def hold_output() -> None:
    """Keep what this process prints off the terminal, if another one is the main process.

    ``keep_output`` says later where it goes; until then it lies in a temporary file.
    """
    if int(os.environ.get("RANK", 0)) == 0 or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    sys.stderr.flush()
    LAST_WORDS.append(os.dup(2))
    with tempfile.TemporaryFile() as file:
        _send_output(file.fileno())


def join(training: Mapping[str, Any], *, logs: Path) -> None:
    """Join the other processes, as ``start`` does; all but the main one print into files.

    Args:
        training: ``transformers.TrainingArguments``.
        logs: the folder of these files.

    Raises:
        ConfigError: as ``start``.
    """
    start(training)
    keep_output(logs)


def logs_beside(store: Path) -> Path:
    """Return the folder of logs of processes that work on an assistant."""
    root = store.resolve()
    return root.with_name(f"{root.name}-logs")


def keep_output(folder: Path) -> None:
    """Write what this process prints into a file in ``folder``, if ``hold_output`` holds it back.

    Args:
        folder: made if there is none; on every machine of the run.
    """
    channel = joined()
    if channel is not None:
        channel.logs = str(folder / LOG)
    if not LAST_WORDS:
        return
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with (folder / LOG.format(rank=os.environ["RANK"])).open("ab") as file:
        held = os.dup(1)
        os.lseek(held, 0, os.SEEK_SET)
        while block := os.read(held, 1 << 16):
            file.write(block)
        os.close(held)
        file.flush()
        _send_output(file.fileno())


def after_main(message: str) -> None:
    """Print an error from before the processes joined, unless the main one has the same.

    If it has, its launcher ends this process meanwhile.
    """
    if LAST_WORDS:
        time.sleep(UNJOINED_S)
        say(f"Process {os.environ['RANK']}: {message}")


def _send_output(descriptor: int) -> None:
    for standard in (1, 2):
        os.dup2(descriptor, standard)
