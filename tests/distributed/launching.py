"""Start two processes as users do, on a tiny stream."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PLAIN = [sys.executable, "-m", "lcia"]

MEETING = """
import os, sys, time
from lcia.distributed.channel import Channel
rank, meeting = int(sys.argv[1]), sys.argv[2]
def spread(values):
    if rank == 0:
        with open(meeting + ".tmp", "w") as file:
            print(*values[0], file=file)
        os.replace(meeting + ".tmp", meeting)
        return
    while not os.path.exists(meeting):
        time.sleep(0.01)
    port, secret = open(meeting).read().split()
    values[0] = (int(port), secret)
"""
"""Begins the code of a rank that is told its number and a file: who is first writes there where
the others find its channel, opened with ``spread``."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(*what, processes=2):
    port = str(free_port())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*command, "--master_port", port, *map(str, what)]


def environment(**more):
    """The environment without a word about the CPU: lcia finds that out."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    return {**env, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def run(command, cwd, *, timeout=300, **more):
    return subprocess.run(
        command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=timeout
    )


def run_stream(folder, command, *settings, batch_size):
    """Run ``stream.yaml`` to its end on CPUs, with so large batches, and return the output."""
    output = folder / f"by{batch_size}"
    arguments = ["run", "stream.yaml", *settings, "--set", f"output={output.name}"]
    arguments += ["--set", f"training.per_device_train_batch_size={batch_size}"]
    done = run([*command, *arguments], folder, timeout=600, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def write_data(folder, task):
    path = folder / f"{task.name}.jsonl"
    lines = [{"prompt": s.prompt, "completion": s.answers[0]} for s in task.train]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_stream(folder, model, tasks, **training):
    settings = {
        "num_train_epochs": 1,
        "learning_rate": 0.01,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        **training,
    }
    entries = []
    for task in tasks:
        name = write_data(folder, task).name
        entries.append(f"{{name: {task.name}, train: {name}, instruction: first_line}}")
    (folder / "stream.yaml").write_text(
        f"model: {model}\ndtype: float32\ntasks: [{', '.join(entries)}]\noutput: out\n"
        f"training: {json.dumps(settings)}\n"
    )
