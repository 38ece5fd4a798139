"""An assistant of four groups on the embedded model, and a server process to measure."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from lcia.config import AssistantConfig
from lcia.data import Message, Sample, Task
from lcia.learner import ContinualLearner, Store

INSTRUCTIONS = {
    "stories": "Tell a long story about the subject.",
    "histories": "Explain the history of the subject in detail.",
    "letters": "Write a friendly letter to someone who loves the subject.",
    "lessons": "Teach a class of children everything they should know about the subject.",
}
SUBJECTS = [
    "rivers",
    "bridges",
    "violins",
    "clocks",
    "glass",
    "maps",
    "tea",
    "trains",
    "winter",
    "gardens",
    "bread",
    "stars",
]


def prompt(task: str, number: int) -> str:
    """Return a prompt of a task; its answer is long, so that an answer's length is its limit."""
    return f"Subject: {SUBJECTS[number % len(SUBJECTS)]} ({number})\n\n{INSTRUCTIONS[task]}"


def make_store(root: Path) -> Store:
    """Return the assistant at ``root``, made unless it is there.

    Two optimizer steps at a tiny learning rate: adapters of every layer that change little, so
    that all of them answer at length. Speed does not depend on what they learned.
    """
    if (root / "assistant.json").is_file():
        return Store.open(root)
    training = {"max_steps": 2, "learning_rate": 1e-5, "per_device_train_batch_size": 2}
    config = AssistantConfig(model="smollm2-135m", training=training)
    learner = ContinualLearner.create(root, config)
    for task in INSTRUCTIONS:
        samples = tuple(
            Sample(
                id=str(i),
                messages=(Message(role="user", content=prompt(task, i)),),
                answers=("Once upon a time",),
            )
            for i in range(8)
        )
        learner.learn(
            Task(
                name=task,
                train=samples[:6],
                test=samples[6:],
                instruction="last_line",
                max_new_tokens=4,
            )
        )
    return learner.store


@dataclass(frozen=True)
class ServerProcess:
    """A running ``lcia serve`` or ``lcia gateway``."""

    url: str
    pid: int
    log: Path

    def rss_mb(self) -> float:
        """Return the memory it has in RAM, in megabytes."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def processor_s(self) -> float:
        """Return the processor time it has had, in seconds."""
        fields = (
            Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        )
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(
    store: Path,
    log: Path,
    options: Sequence[str] = (),
    *,
    verb: Sequence[str] = ("serve",),
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """Run ``lcia serve``, or another verb, in a process of its own; it must end well when told.

    Args:
        store: the assistant.
        log: gets what it says.
        options: after the store.
        verb: what to run.
        environment: beyond this one's.
    """
    command = [sys.executable, "-m", "lcia", *verb, str(store), "--port", "0", *options]
    env = {**os.environ, **(environment or {})}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=env, start_new_session=True
        )
    try:
        while not (found := re.search(r"listening on (\S+)", log.read_text(encoding="utf-8"))):
            if process.poll() is not None:
                raise SystemExit(f"the server did not start:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.2)
        httpx.get(f"{found[1]}/readyz", timeout=60)
        yield ServerProcess(found[1], process.pid, log)
        process.terminate()
        if process.wait(timeout=90) != 0:
            raise SystemExit(f"the server ended with {process.returncode}; see {log}")
    finally:
        process.kill()
        process.wait()
