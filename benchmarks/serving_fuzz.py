"""Ten thousand hostile bodies: does the server tell each what is wrong, and stop nobody else?

    PYTHONPATH=tests python -m benchmarks.serving_fuzz   # kept as serving_fuzz

Four clients send at once what ``tests/hostile.py`` draws by seed; another one asks /healthz all
the time. Memory is the server's resident set, sampled every 50 ms. Of the slowest answers it is
noted how much processor time the server had meanwhile: a request that waits while the server
works is slow, one that waits while it does nothing hangs.
"""

import argparse
import asyncio
import collections
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.measured import MEASURED, keep
from benchmarks.serving_server import ServerProcess, make_store, server
from hostile import Hostile, requests

HANGS_S = 60.0


@dataclass
class Told:
    """What came back.

    Attributes:
        answers: status and code, to how often.
        wrong: what should not have happened.
        answered: of every answer: seconds, the server's processor seconds meanwhile, what it was.
        healthz_s: how long every probe took.
        rss_mb: the server's memory.
    """

    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    answered: list[tuple[float, float, str]] = field(default_factory=list)
    healthz_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


async def send(
    client: httpx.AsyncClient, process: ServerProcess, asked: Iterator[Hostile], told: Told
) -> None:
    """Send requests until there are none, and check that every answer is one."""
    for one in asked:
        started, worked = time.perf_counter(), process.processor_s()
        try:
            answer = await client.post(one.path, content=one.body, headers=one.headers)
            seconds, processor_s = time.perf_counter() - started, process.processor_s() - worked
            shown = f"{answer.status_code} {one.path} {one.body[:100]!r} ({len(one.body)} bytes)"
            told.answered.append((seconds, processor_s, shown))
            code = answer.json()["error"]["code"] if answer.status_code >= 400 else ""
        except (httpx.HTTPError, ValueError, KeyError) as error:
            processor_s = process.processor_s() - worked
            told.wrong.append(
                f"{one.path} {one.body[:200]!r}: {error!r} after {processor_s:.1f} s of work"
            )
            continue
        told.answers[f"{answer.status_code} {code}".strip()] += 1
        if answer.status_code >= 500 and code != "overloaded":
            told.wrong.append(f"{one.path} {one.body[:200]!r}: {answer.text[:200]}")


async def probe(client: httpx.AsyncClient, process: ServerProcess, told: Told) -> None:
    """Ask /healthz again and again, until cancelled."""
    while True:
        started = time.perf_counter()
        await client.get("/healthz")
        told.healthz_s.append(time.perf_counter() - started)
        told.rss_mb.append(process.rss_mb())
        await asyncio.sleep(0.05)


async def fuzz(process: ServerProcess, *, count: int, seed: int) -> Told:
    """Send everything; the clients share one list."""
    told, asked = Told(), requests(count, seed=seed)
    async with (
        httpx.AsyncClient(base_url=process.url, timeout=HANGS_S) as client,
        httpx.AsyncClient(base_url=process.url, timeout=HANGS_S) as prober,
    ):
        probing = asyncio.create_task(probe(prober, process, told))
        await asyncio.gather(*(send(client, process, asked, told) for _ in range(4)))
        probing.cancel()
    return told


async def fill(process: ServerProcess, *, context: int) -> None:
    """Let the cache grow to its bound: four answers at once that use all of the context."""
    prompts = ["word " * (context - 8)] * 4
    async with httpx.AsyncClient(base_url=process.url, timeout=600) as client:
        asked = {"model": "base", "prompt": prompts, "max_tokens": 4}
        (await client.post("/v1/completions", json=asked)).raise_for_status()


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the longest time, in milliseconds."""
    found = sorted(seconds)
    places = {"p50": len(found) // 2, "p99": len(found) * 99 // 100, "max": -1}
    return {name: round(1e3 * found[place], 1) for name, place in places.items()}


def quarters(values: list[float]) -> list[list[float]]:
    """Return four parts of a list of four or more, in order."""
    ends = [len(values) * i // 4 for i in range(5)]
    return [values[a:b] for a, b in itertools.pairwise(ends)]


def main() -> None:
    """Fuzz a server of its own and write what came back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--store", type=Path, help="an assistant; default: one made for this")
    parser.add_argument("--results", type=Path, default=MEASURED)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = asked.store or make_store(Path(scratch) / "assistant").root
        # Few rows: the cache grows to its largest batch, which is no fault of any body.
        options = ["--max-new-tokens", "4", "--max-context", str(asked.context), "--max-batch", "4"]
        with server(store, Path(scratch) / "log.txt", options) as process:
            asyncio.run(fill(process, context=asked.context))
            asyncio.run(fuzz(process, count=50, seed=-1))  # whatever is made once is made
            before = process.rss_mb()
            started = time.perf_counter()
            told = asyncio.run(fuzz(process, count=asked.count, seed=asked.seed))
            seconds = time.perf_counter() - started
        tracebacks = (Path(scratch) / "log.txt").read_text(encoding="utf-8").count("Traceback")
    result = {
        "requests": asked.count,
        "seconds": round(seconds, 1),
        "answers": dict(sorted(told.answers.items())),
        "wrong": told.wrong[:20],
        "tracebacks": tracebacks,
        "answer_ms": percentiles([seconds for seconds, _, _ in told.answered]),
        "slowest": [
            {"seconds": round(seconds, 1), "processor_s": round(processor_s, 1), "what": what}
            for seconds, processor_s, what in sorted(told.answered, reverse=True)[:5]
        ],
        "healthz_ms": percentiles(told.healthz_s),
        "rss_mb": {
            "base": round(before),
            "peaks_of_quarters": [round(max(part)) for part in quarters(told.rss_mb)],
            "end": round(told.rss_mb[-1]),
        },
    }
    keep("serving_fuzz", result, asked.results)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
