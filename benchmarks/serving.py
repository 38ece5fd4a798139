"""Throughput and latency of ``lcia serve``: base model, one adapter, a routed mix of four.

    python -m benchmarks.serving            # prints tables, kept as serving

One server process, clients in this one. The three kinds take turns within every round, so that
what else the machine does meets all of them. Every answer has the same length; latencies are of
whole answers. The clients' own work is part of what is measured: it runs on the same cores.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.measured import MEASURED, keep
from benchmarks.serving_server import INSTRUCTIONS, ServerProcess, make_store, prompt, server
from lcia.models import resolve_dtype

KINDS = ("base", "one adapter", "mix of 4")
CLIENTS = {1: 4, 8: 24, 32: 64}
"""Clients at once, and the answers of one measurement."""


def request(kind: str, number: int, tokens: int) -> dict[str, Any]:
    """Return the body of one request."""
    task = list(INSTRUCTIONS)[number % 4]
    model = {"base": "base", "one adapter": "g1", "mix of 4": "assistant"}[kind]
    messages = [{"role": "user", "content": prompt(task, number)}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "stream": True} | {
        "stream_options": {"include_usage": True}
    }


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, float]:
    """Return how long one streamed answer took."""
    started, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            first = first or (time.perf_counter() if '"content":"' in line else 0.0)
            if '"usage"' in line:
                tokens = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
    ended = time.perf_counter()
    return {"seconds": ended - started, "first": first - started, "tokens": tokens}


async def measure(url: str, kind: str, clients: int, tokens: int, seed: int) -> dict[str, Any]:
    """Return throughput and latencies of one kind at one number of clients."""
    numbers = iter(range(seed, seed + CLIENTS[clients]))
    answers: list[dict[str, float]] = []
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:

        async def one_client() -> None:
            for number in numbers:
                answers.append(await ask(client, request(kind, number, tokens)))

        started = time.perf_counter()
        await asyncio.gather(*(one_client() for _ in range(clients)))
        seconds = time.perf_counter() - started
    generated = sum(answer["tokens"] for answer in answers)
    return {"answers": answers, "seconds": seconds, "tokens_per_s": generated / seconds}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median throughput of several rounds, and quantiles over all their answers."""
    answers = [answer for one in rounds for answer in one["answers"]]
    found: dict[str, Any] = {
        "tokens_per_s": statistics.median(one["tokens_per_s"] for one in rounds),
        "tokens_per_s_rounds": [round(one["tokens_per_s"], 1) for one in rounds],
        "answers": len(answers),
    }
    for key, name in (("seconds", "latency_s"), ("first", "first_token_s")):
        values = sorted(answer[key] for answer in answers)
        found[name] = {
            f"p{q}": values[min(len(values) - 1, len(values) * q // 100)] for q in (50, 95, 99)
        }
    return found


def routing(url: str) -> dict[str, Any]:
    """Return what routing cost, from the server's own histogram."""
    page = httpx.get(f"{url}/metrics").text
    buckets = {
        float(line.split('le="')[1].split('"')[0]): float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith("lcia_routing_seconds_bucket")
    }
    count = buckets[float("inf")]
    total = next(x for x in page.splitlines() if x.startswith("lcia_routing_seconds_sum"))
    return {
        "routed": int(count),
        "mean_ms": 1000 * float(total.split()[-1]) / count,
        "p99_at_most_ms": 1000 * next(le for le, n in buckets.items() if n >= 0.99 * count),
    }


def run(process: ServerProcess, *, rounds: int, tokens: int) -> dict[str, Any]:
    """Return all measurements, after one of each kind to warm up."""
    for kind in KINDS:
        asyncio.run(measure(process.url, kind, 8, 8, seed=0))
    result: dict[str, Any] = {}
    for clients in CLIENTS:
        taken: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        for turn in range(rounds):
            for kind in (*KINDS[turn % 3 :], *KINDS[: turn % 3]):
                seed = 1000 * turn + 100 * clients
                taken[kind].append(
                    asyncio.run(measure(process.url, kind, clients, tokens, seed=seed))
                )
        result[str(clients)] = {kind: summary(found) for kind, found in taken.items()}
    result["rss_mb"] = process.rss_mb()
    return result


def verdicts(result: dict[str, Any]) -> dict[str, float]:
    """Return the ratios that are aimed at."""
    speed = {
        (clients, kind): result[str(clients)][kind]["tokens_per_s"]
        for clients in CLIENTS
        for kind in KINDS
    }
    return {
        **{
            f"mix over one adapter, {clients} clients": speed[clients, "mix of 4"]
            / speed[clients, "one adapter"]
            for clients in CLIENTS
        },
        **{f"8 clients over 1, {kind}": speed[8, kind] / speed[1, kind] for kind in KINDS},
    }


def report(result: dict[str, Any]) -> str:
    """Return the tables of docs/serving.md."""
    lines = [
        "| clients | kind | tokens/s | latency p50 / p95 / p99, s | first token p50 / p99, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for clients in CLIENTS:
        for kind in KINDS:
            cell = result[str(clients)][kind]
            whole, first = cell["latency_s"], cell["first_token_s"]
            lines.append(
                f"| {clients} | {kind} | {cell['tokens_per_s']:.0f} | {whole['p50']:.2f} / "
                f"{whole['p95']:.2f} / {whole['p99']:.2f} | {first['p50']:.2f} / "
                f"{first['p99']:.2f} |"
            )
    lines += ["", *(f"{name}: {value:.2f}" for name, value in result["ratios"].items())]
    cost = result["routing"]
    lines.append(
        f"routing: {cost['mean_ms']:.2f} ms on average, p99 at most {cost['p99_at_most_ms']:g} ms "
        f"({cost['routed']} prompts)"
    )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="keep the assistant here; default: temporary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="length of every answer")
    parser.add_argument("--results", type=Path, default=MEASURED)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = make_store(options.store or Path(scratch) / "assistant").root
        with server(store, Path(scratch) / "log") as process:
            result = run(process, rounds=options.rounds, tokens=options.tokens)
            result["routing"] = routing(process.url)
    result["ratios"] = verdicts(result)
    result["machine"] = {
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": torch.cpu.get_capabilities().get("cpu_name"),
        "dtype": resolve_dtype("auto"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "tokens": options.tokens,
    }
    keep("serving", result, options.results)
    print(report(result))


if __name__ == "__main__":
    main()
