"""Streams on disk and the command line in a process of its own."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def lcia(capfd, monkeypatch):
    """Run the command line as a user would, in this process: importing torch takes seconds."""

    def run(*arguments: str | Path) -> Finished:
        from lcia.cli.main import main

        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["lcia", *map(str, arguments)])
            patch.setattr(sys, "stdout", sys.__stdout__)
            patch.setenv("COLUMNS", "200")
            try:
                main()
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            sys.stdout.flush()
        out, err = capfd.readouterr()
        return Finished(code, out, err)

    return run


@pytest.fixture
def fails(lcia):
    """Run a command that must fail with exit code 2; return its one line."""

    def run(*arguments: str | Path) -> str:
        done = lcia(*arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        # In this process the bars of other libraries are on.
        lines = [x for x in done.stderr.splitlines() if x and not x.startswith("Loading weights")]
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


@pytest.fixture(scope="module")
def server(served_store):
    """Serve an assistant with two groups; the address and the service."""
    from serving_server import serving

    with serving(served_store, max_new_tokens=300) as (url, service):
        yield url, service


@pytest.fixture(scope="module")
def url(server) -> str:
    """Return the address of ``server``."""
    return server[0]


@pytest.fixture
def client(url):
    """The official client, which asks ``server``."""
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def served_store(tmp_path_factory, tiny_model):
    """An assistant with two groups, to be served and not changed."""
    from serving_server import make_store

    return make_store(tmp_path_factory.mktemp("served") / "assistant", tiny_model)
