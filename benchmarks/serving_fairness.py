"""Do short requests wait behind prompts of a megabyte?

    python -m benchmarks.serving_fairness      # kept as serving_fairness

A tiny model, asked without sockets. Rounds with and without big prompts take turns, so that what
else the machine does meets both: 4 clients ask briefly; in every other round 2 more send 1 MB
each, again and again. It is refused for its length, but not by counting characters.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

from benchmarks.measured import keep
from lcia.errors import LciaError
from lcia.learner import load_host
from lcia.serving.config import ServeConfig
from lcia.serving.engine import EngineLimits
from lcia.serving.http.schemas import ChatRequest
from lcia.serving.http.service import Service
from lcia.serving.live import LiveStore

ROOT = Path(__file__).parents[1]
SHORT = "Write this number as a digit.\n\ntwo 7"
BIG = "word " * 200_000


async def ask(service: Service, text: str) -> float:
    """Return the seconds that a request took, answered or refused."""
    started = time.perf_counter()
    messages = [{"role": "user", "content": text}]
    asked = ChatRequest.model_validate(
        {"model": "assistant", "messages": messages, "max_tokens": 4}
    )
    try:
        async with aclosing(service.generate(await service.prepare(asked))) as deltas:
            async for _ in deltas:
                pass
    except LciaError:
        assert text is BIG
    return time.perf_counter() - started


async def measure(service: Service, *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return the latencies of short requests, without and with big ones beside them."""
    service.answers.start()
    found: dict[str, list[float]] = {"alone": [], "beside 1 MB": []}
    big = 0
    for number in range(2 * rounds):
        kind = list(found)[number % 2]
        end = time.perf_counter() + seconds

        async def short(kind: str, end: float) -> None:
            while time.perf_counter() < end:
                found[kind].append(await ask(service, SHORT))

        async def long(end: float) -> None:
            nonlocal big
            while time.perf_counter() < end:
                await ask(service, BIG)
                big += 1
                await asyncio.sleep(0.05)

        beside = [long(end) for _ in range(2 * (number % 2))]
        await asyncio.gather(*(short(kind, end) for _ in range(4)), *beside)
    await service.stop()
    found["big"] = [float(big)]
    return found


def percentile(values: list[float], share: float) -> float:
    """Return a percentile in milliseconds."""
    return round(1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))], 2)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--context", type=int, default=512)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))  # the tiny model is the tests' own
    from conftest import save_tiny_model
    from serving_server import make_store

    with tempfile.TemporaryDirectory() as scratch:
        store = make_store(Path(scratch) / "assistant", save_tiny_model(Path(scratch) / "model"))
        host = load_host(store.config)
        config = ServeConfig(limits=EngineLimits(max_context=options.context))
        service = Service(host, LiveStore(store.root), config=config)
        # As with a tokenizer of long tokens: no megabyte is refused for its characters alone.
        service._longest_token = 1 << 20
        found = asyncio.run(measure(service, rounds=options.rounds, seconds=options.seconds))
    big = int(found.pop("big")[0])
    result: dict[str, Any] = {
        kind: {
            "requests": len(values),
            "p50_ms": round(1000 * statistics.median(values), 2),
            "p99_ms": percentile(values, 0.99),
        }
        for kind, values in found.items()
    }
    result["big_requests"] = big
    alone, beside = (result[kind]["p99_ms"] for kind in found)
    result["p99_ratio"] = round(beside / alone, 2)
    keep("serving_fairness", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
