"""Streams on disk and the command line in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lcia():
    """Run the command line as a user would; return the finished process."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lcia", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run


@pytest.fixture(scope="session")
def fails(lcia):
    """Run a command that must fail with exit code 2; return its one line."""

    def run(*arguments: str | Path) -> str:
        done = lcia(*arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        return lines[0]

    return run


def write_jsonl(path: Path, samples) -> None:
    """Write samples in the chat-messages format."""
    with path.open("w") as file:
        for sample in samples:
            turns = [{"role": m.role, "content": m.content} for m in sample.messages]
            turns.append({"role": "assistant", "content": sample.answers[0]})
            file.write(json.dumps({"messages": turns}) + "\n")


@pytest.fixture
def stream(tmp_path, tiny_model, colours, shades, numbers) -> Path:
    """A stream file with its data: three tasks, two of one instruction."""
    entries = []
    for task in (colours, shades, numbers):
        for split in ("train", "test"):
            write_jsonl(tmp_path / f"{task.name}-{split}.jsonl", getattr(task, split))
        entries.append(
            f"  - {{name: {task.name}, train: {task.name}-train.jsonl, "
            f"test: {task.name}-test.jsonl, instruction: first_line, max_new_tokens: 4}}\n"
        )
    path = tmp_path / "stream.yaml"
    path.write_text(
        f"model: {tiny_model}\n"
        "dtype: float32\n"
        f"tasks:\n{''.join(entries)}"
        "training: {num_train_epochs: 2, learning_rate: 0.01, save_steps: 2}\n"
        "adapter: {lora_dropout: 0.1}\n"
        "output: out\n"
    )
    return path
