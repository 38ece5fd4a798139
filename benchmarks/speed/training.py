"""Steps of training through ``lcia run``, with dynamic EMA and without: seconds a step, tokens.

    python -m benchmarks.speed.training                                # one process
    python -m benchmarks.speed.training --processes 8 --set training.fsdp=true  # torchrun

Prints one line of JSON. The first steps are left out: they compile and fill caches.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from lcia.data import load_stream
from lcia.learner import Store
from lcia.learner.outcome import environment

WARM_UP = 3
METHODS = ("sequential", "lcia")


def launcher(processes: int) -> list[str]:
    """Return the words before ``-m lcia``: several processes are torchrun's."""
    if processes == 1:
        return [sys.executable]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc_per_node", str(processes)]


def write_stream(folder: Path, asked: argparse.Namespace) -> Path:
    """Write a stream of two tasks in one group, so that the second one averages."""
    entries = []
    for task in load_stream("builtin:skills")[:2]:
        records = [{"prompt": s.prompt, "completion": s.answers[0]} for s in task.train]
        path = folder / f"{task.name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        entries.append({"name": task.name, "train": path.name, "test": path.name, "max_test": 1})
    training = {
        "max_steps": asked.steps,
        "per_device_train_batch_size": asked.batch_size,
        "save_steps": 1000,
    }
    tree = {
        "model": asked.model,
        "tasks": entries,
        "grouping": "off",
        "methods": list(METHODS),
        "output": "out",
        "training": training,
    }
    path = folder / "stream.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def step_seconds(store: Store) -> float:
    """Return the median time between steps of the second task, without the first ones."""
    steps = [event for event in store.current.journal() if event["event"] == "step"]
    times = [later["time"] - event["time"] for event, later in pairwise(steps)]
    return statistics.median(times[WARM_UP:])


def main() -> None:
    """Learn with each method, and print seconds a step and samples a second."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=30, help="of each task")
    parser.add_argument("--batch-size", type=int, default=8, help="of each process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of lcia run")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stream = write_stream(Path(folder), asked)
        settings = [word for pair in asked.set for word in ("--set", pair)]
        command = [*launcher(asked.processes), "-m", "lcia", "run", str(stream), *settings]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        seconds = {
            method: step_seconds(Store.open(Path(folder) / "out" / f"{method}-seed0" / "assistant"))
            for method in METHODS
        }
    samples = asked.batch_size * asked.processes
    report = {
        "model": asked.model,
        "processes": asked.processes,
        "settings": asked.set,
        "seconds_a_step": {method: round(taken, 4) for method, taken in seconds.items()},
        "samples_a_second": {m: round(samples / taken, 1) for m, taken in seconds.items()},
        "average_costs_percent": round(100 * (seconds["lcia"] / seconds["sequential"] - 1), 1),
        "environment": environment(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
