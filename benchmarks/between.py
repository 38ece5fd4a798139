"""This code beside an earlier commit's, in turns: what an update, a step and an answer take.

    python -m benchmarks.between 61d09b0~1 --rounds 2     # kept as between

Each measurement is a process of its own with one of the two sources; they alternate, and medians
are compared. ``average``: an update of 420 tensors of LoRA (2.4 million values). ``training``: a
step of ``lcia learn`` on the embedded model, everything that a step does, from the journal.
``serving``: 32 answers of 48 tokens to 8 clients of ``lcia serve``, of two groups and the base.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measured import MEASURED, keep
from benchmarks.serving_server import server
from lcia.learner.outcome import environment

ROOT = Path(__file__).parents[1]

AVERAGE = """
import statistics, sys, time
import torch
from lcia.ema import DynamicEMA
torch.set_num_threads(1)
torch.manual_seed(0)
shapes = [s for _ in range(30) for i, o in [(576, 576), (576, 192), (576, 192), (576, 576),
          (576, 1536), (576, 1536), (1536, 576)] for s in [(8, i), (o, 8)]]
parameters = [(str(i), torch.nn.Parameter(torch.randn(s))) for i, s in enumerate(shapes)]
ema, taken = DynamicEMA(parameters, rule="release"), []
for _ in range(60):
    for _, p in parameters:
        p.grad = torch.randn_like(p) * 0.01
        p.data.add_(p.grad, alpha=-0.1)
    begun = time.perf_counter()
    ema.update()
    taken.append(time.perf_counter() - begun)
print(1000 * statistics.median(taken[5:]))
"""

TRAINING = """
import statistics, sys, time
from dataclasses import replace
from lcia.config import AssistantConfig
from lcia.data import load_stream
from lcia.learner import ContinualLearner
tasks = {task.name: task for task in load_stream("builtin:skills")}
settings = {"max_steps": 10, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
begun = {}
def hear(event):
    if event.get("event") == "step":
        begun.setdefault(event["task"], []).append(time.perf_counter())
config = AssistantConfig(model="smollm2-135m", dtype="float32", training=settings)
learner = ContinualLearner.create(sys.argv[1], config, listener=hear)
for name in ("dates_german", "continents"):
    learner.learn(replace(tasks[name], test=tasks[name].test[:4]))
steps = [b - a for times in begun.values() for a, b in zip(times, times[1:])]
print(1000 * statistics.median(steps))
"""


def run(source: Path, code: str, *arguments: str, threads: int) -> float:
    """Return the last line that a program prints, run with a source tree, as a number."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **settings(source, threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{source}: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def settings(source: Path, threads: int) -> dict[str, str]:
    """Return the variables by which ``lcia`` is that of a source tree."""
    return {"PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": str(threads)}


def serving(source: Path, store: Path, log: Path) -> float:
    """Return the tokens per second that a server of a source tree gives eight clients."""
    with server(store, log, environment=settings(source, os.cpu_count() or 1)) as process:
        asyncio.run(ask(process.url, 8))
        return asyncio.run(ask(process.url, 32))


async def ask(url: str, answers: int) -> float:
    """Let eight clients ask for so many answers; return tokens per second."""
    numbers = iter(range(answers))
    tokens = 0
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:

        async def client() -> None:
            nonlocal tokens
            for number in numbers:
                body: dict[str, Any] = {
                    "model": ("g1", "g2", "base")[number % 3],
                    "messages": [{"role": "user", "content": f"Count to {100 + number}."}],
                    "max_tokens": 48,
                    "temperature": 0.7,
                    "seed": number,
                }
                answer = await http.post("/v1/chat/completions", json=body)
                answer.raise_for_status()
                tokens += answer.json()["usage"]["completion_tokens"]

        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(8)))
        return tokens / (time.perf_counter() - begun)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="of the earlier code")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=MEASURED)
    options = parser.parse_args()
    git = ["git", "-C", str(ROOT)]
    names = [
        subprocess.check_output([*git, "rev-parse", "--short", name], text=True).strip()
        for name in (options.commit, "HEAD")
    ]
    taken: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        earlier = folder / "earlier"
        subprocess.run([*git, "worktree", "add", "--detach", earlier, names[0]], check=True)
        try:
            sources = {"earlier": earlier, "now": ROOT}
            for number in range(options.rounds):
                for which in sorted(sources, reverse=bool(number % 2)):
                    source, store = sources[which], folder / f"{which}{number}"
                    figures = {
                        "average": run(source, AVERAGE, threads=1),
                        "training": run(source, TRAINING, str(store), threads=1),
                        # Of the earlier code's making: later code opens it.
                        "serving": serving(source, folder / "earlier0", folder / "log"),
                    }
                    for what, figure in figures.items():
                        taken.setdefault(what, {}).setdefault(which, []).append(figure)
                    print(number, which, figures, file=sys.stderr, flush=True)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", earlier], check=True)
    result = {
        what: {which: round(statistics.median(figures), 2) for which, figures in found.items()}
        for what, found in taken.items()
    }
    for what, found in result.items():
        ratio = found["now"] / found["earlier"]
        found["now_is_faster"] = round(ratio if what == "serving" else 1 / ratio, 2)
    about = {"commits": dict(zip(("earlier", "now"), names, strict=True)), "machine": environment()}
    keep("between", {**result, **about}, options.results)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
