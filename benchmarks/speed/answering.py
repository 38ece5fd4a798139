"""Held-out samples answered by several processes against one: wall and processor time.

    python -m benchmarks.speed.answering                     # prints, kept as answering
    python -m benchmarks.speed.answering --model DIR --rounds 1 --processes 4

One process and several take turns in every round, each a start of its own with one thread a
process; the clock runs from when all have loaded the model to when all predictions are known. Half
of the tasks are answered by one adapter, half by another. Both must predict the same.
"""

import argparse
import hashlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from benchmarks.measured import MEASURED, keep
from lcia.config import AssistantConfig
from lcia.data import load_stream
from lcia.distributed.launch import joined, start
from lcia.distributed.processes import on_main
from lcia.evaluation.generate import evaluate
from lcia.grouping import RouteDecision
from lcia.learner import load_host
from lcia.learner.outcome import environment

GROUPS = ("g1", "g2")


def write_adapters(model: str, folder: Path) -> None:
    """Write an adapter for each group, with random weights that change answers a little."""
    host = load_host(AssistantConfig(model=model, dtype="float32"))
    for seed, group in enumerate(GROUPS):
        torch.manual_seed(seed)
        adapted = host.new_adapter(LoraConfig(r=8, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=1e-3)
        adapted.save_pretrained(folder / group)
        host.clear()


def answer(folder: Path, *, model: str, samples: int) -> None:
    """Answer held-out samples, as every process of a launcher; write what was measured.

    Args:
        folder: of the adapters; gets a file for each process.
        model: the base model.
        samples: most per task.
    """
    start({"ddp_backend": "gloo"} if not torch.accelerator.is_available() else {})
    host = load_host(AssistantConfig(model=model, dtype="float32"))
    tasks = [replace(task, test=task.test[:samples]) for task in load_stream("builtin:skills")]
    groups = {task.name: GROUPS[i % 2] for i, task in enumerate(tasks)}
    on_main(lambda: None)
    begun, used = time.perf_counter(), time.process_time()
    predictions = evaluate(
        host,
        tasks,
        route=lambda prompt: _to("g1"),
        given=lambda task: _to(groups[task]),
        adapters={group: (f"{group}@0001", folder / group) for group in GROUPS},
        batch_size=8,
    )
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    texts = json.dumps([p.to_json() for p in predictions]).encode()
    measured = {
        "seconds": seconds,
        "processor_seconds": used,
        "samples": len(predictions),
        "predictions": hashlib.sha256(texts).hexdigest(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    channel = joined()
    rank = channel.rank if channel else 0
    (folder / f"{rank}.json").write_text(json.dumps(measured), encoding="utf-8")


def _to(group: str) -> RouteDecision:
    return RouteDecision(
        group=group,
        similarity=1.0,
        nearest=group,
        runner_up=None,
        runner_up_similarity=0.0,
        reason="task_given",
        instruction="",
        instruction_found=False,
    )


def measure(processes: int, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Start processes that answer; return what the main one measured, and all processor time."""
    for file in folder.glob("*.json"):
        file.unlink()
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--master_port", port]
    command += ["-m", "benchmarks.speed.answering", "--answer", str(folder)]
    command += ["--model", asked.model, "--samples", str(asked.samples)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{processes} processes failed:\n{done.stderr[-3000:]}")
    each = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    used = sum(one["processor_seconds"] for one in each)
    return {**each[0], "processor_seconds": used, "processes": processes}


def main() -> None:
    """Alternate one process and several; print and write medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--samples", type=int, default=16, help="of each of the six tasks, at most")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=MEASURED)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.answer:
        answer(asked.answer, model=asked.model, samples=asked.samples)
        return
    kinds = sorted({1, asked.processes})
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in kinds}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        write_adapters(asked.model, Path(folder))
        for _ in range(asked.rounds):
            for number in found:
                found[number].append(measure(number, Path(folder), asked))
    medians = {
        number: {
            key: round(statistics.median(one[key] for one in measured), 3)
            for key in ("seconds", "processor_seconds", "samples", "peak_mb")
        }
        for number, measured in found.items()
    }
    report = {
        "model": asked.model,
        "medians": medians,
        "times_as_fast": round(medians[1]["seconds"] / medians[kinds[-1]]["seconds"], 2),
        "same_predictions": len({one["predictions"] for all_ in found.values() for one in all_})
        == 1,
        "load_before": round(load, 1),
        "rounds": asked.rounds,
        "environment": environment(),
    }
    keep("answering", report, asked.results)
    print(json.dumps({key: report[key] for key in report if key != "environment"}))
    if not report["same_predictions"]:
        raise SystemExit("The predictions differ.")


if __name__ == "__main__":
    main()
