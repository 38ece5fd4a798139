"""Is every answer the one its adapter version gives alone, whatever else happens to the server?

    python -m benchmarks.serving_truth --requests 100000 --minutes 10
    python -m benchmarks.serving_truth --add    # goes on counting, from the results that are there

A tiny model in float32, asked without sockets: routed and named groups, greedy and seeded, in one
batch; versions change all the time; clients leave, and send what cannot be answered; forward
passes run out of memory and fail, adapters cannot be read, the disk is slow. Every request must
be answered or refused with a reason. Afterwards each distinct question is asked alone, one by
one: all answers to it must be that one. Kept as serving_truth.
"""

import argparse
import asyncio
import collections
import json
import random
import statistics
import sys
import tempfile
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measured import MEASURED, keep, kept
from lcia.errors import StoreError
from lcia.learner import Store, load_host
from lcia.serving.config import ServeConfig
from lcia.serving.engine import EngineLimits, Prompt
from lcia.serving.http.api_error import ApiError, api_error
from lcia.serving.http.schemas import ChatRequest, CompletionRequest
from lcia.serving.http.service import Prepared, Service
from lcia.serving.live import LiveStore

ROOT = Path(__file__).parents[1]
TEXTS = (
    "Say the letter of the colour.\n\ngreen 7",
    "Say the letter of the colour.\n\nred 1, blue 2 and white 3, and all that is between them",
    "Write this number as a digit.\n\ntwo 7",
    "What is it?",
    "é€ 語 and more",
)
SWAP_S = 5.0
Counts = collections.Counter[str]
PATIENCE_S = 120.0


@dataclass
class Tally:
    """What happened: outcomes, the answers to each question, what is wrong, memory in MB."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    answers: dict[Any, tuple[Prompt, Counts]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    swaps: int = 0


class Faults:
    """Makes the device and the disk fail now and then.

    Args:
        service: whose.
        often: how much more often than by default.
    """

    def __init__(self, service: Service, *, often: float = 1.0) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        batch = service.answers.engine.batch
        forward, acquire = batch.forward, batch.bank.acquire

        def failing_forward(*args: Any, **kwargs: Any) -> Any:
            if random.random() < 0.002 * often:
                self.counts["out of memory"] += 1
                raise torch.OutOfMemoryError("injected")
            if random.random() < 0.001 * often:
                self.counts["failed forward"] += 1
                raise RuntimeError("injected")
            return forward(*args, **kwargs)

        def failing_acquire(key: str, folder: Path) -> None:
            if random.random() < 0.002 * often:
                self.counts["broken adapter"] += 1
                raise StoreError("injected")
            if random.random() < 0.002 * often:
                self.counts["slow disk"] += 1
                time.sleep(0.05)
            acquire(key, folder)

        batch.forward = failing_forward  # type: ignore[method-assign]
        batch.bank.acquire = failing_acquire  # type: ignore[method-assign]


def question(prompt: Prompt) -> Any:
    """Return what an answer depends on."""
    return prompt.ids, prompt.adapter, prompt.sampling, prompt.max_new_tokens


def draw() -> tuple[str, ChatRequest | CompletionRequest]:
    """Return a client's manners and what it sends."""
    asked: dict[str, Any] = {
        "model": random.choice(["assistant", "assistant", "g1", "g2", "base"]),
        "messages": [{"role": "user", "content": random.choice(TEXTS)}],
        "max_tokens": random.choice([2, 5, 11]),
    }
    if random.random() < 0.4:
        asked |= {"temperature": 0.9, "top_p": 0.8, "seed": random.randrange(3)}
    manners = random.choices(
        ["good", "leaves", "too long", "no such model", "tiny numbers"], [85, 6, 3, 3, 3]
    )[0]
    if manners == "too long":
        text = "x" * random.choice([3000, 200_000])
        asked["messages"] = [{"role": "user", "content": text}]
    elif manners == "no such model":
        asked["model"] = "../../etc/passwd"
    elif manners == "tiny numbers":
        tiny = [{"top_p": 1e-46, "temperature": 1.0}, {"temperature": 1e-40, "top_p": 0.5}]
        asked |= random.choice(tiny)
    return manners, ChatRequest.model_validate(asked)


async def one_request(service: Service, tally: Tally) -> None:
    """Ask once, and note what came of it."""
    manners, asked = draw()
    pieces: list[str] = []
    prepared: Prepared | None = None
    try:
        prepared = await service.prepare(asked)
        async with aclosing(service.generate(prepared)) as deltas:
            async for delta in deltas:
                pieces.append(delta.text)
                if manners == "leaves" and not delta.last:
                    tally.outcomes["left"] += 1
                    return
        tally.outcomes["answered"] += 1
        tally.answers.setdefault(question(prepared.prompt), (prepared.prompt, Counts()))[1][
            "".join(pieces)
        ] += 1
    except Exception as error:  # noqa: BLE001 - all of them are counted
        told: ApiError = api_error(error)
        tally.outcomes[f"{told.status} {told.code}"] += 1
        expected = {"too long": "context_length_exceeded", "no such model": "model_not_found"}
        # A version may lack a group that another one has.
        unexpected = told.code not in (expected.get(manners, told.code), "model_not_found")
        if unexpected or told.code == "internal":
            tally.wrong.append(f"{manners}: {type(error).__name__}: {error}")


async def soak(
    service: Service,
    snapshots: list[Any],
    *,
    requests: int,
    seconds: float,
    clients: int = 48,
    swap_s: float = SWAP_S,
) -> Tally:
    """Ask until there were enough requests, or the time is over."""
    tally, started, left = Tally(), time.monotonic(), requests
    service.answers.start()

    async def client() -> None:
        nonlocal left
        while left > 0 and time.monotonic() - started < seconds:
            left -= 1
            try:
                await asyncio.wait_for(one_request(service, tally), PATIENCE_S)
            except asyncio.TimeoutError:
                tally.wrong.append("a request hangs")

    async def swap() -> None:
        while True:
            await asyncio.sleep(swap_s)
            tally.swaps += 1
            service.live.current = snapshots[tally.swaps % len(snapshots)]

    async def watch() -> None:
        while True:
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            tally.rss_mb.append(int(status.partition("VmRSS:")[2].split()[0]) / 1024)
            await asyncio.sleep(1)

    beside = [asyncio.ensure_future(swap()), asyncio.ensure_future(watch())]
    await asyncio.gather(*(client() for _ in range(clients)))
    for task in beside:
        task.cancel()
    engine = service.answers.engine
    for _ in range(200):
        if not engine.running + engine.waiting:
            break
        await asyncio.sleep(0.05)
    else:
        tally.wrong.append("a job stays for ever")
    await service.stop()
    return tally


def check_alone(store: Store, tally: Tally) -> int:
    """Ask every distinct question alone; return how many answers were another one."""
    from lcia.serving.engine import Engine

    differing = 0
    host = load_host(store.config)
    with Engine(host.base, chat=host.chat, limits=EngineLimits(max_batch=1)) as engine:
        for prompt, found in tally.answers.values():
            text = engine.answer([prompt])[0]
            differing += sum(count for answer, count in found.items() if answer != text)
    return differing


def versions(store: Store, live: LiveStore) -> list[Any]:
    """Return the snapshots of all versions of an assistant."""
    from lcia.serving.live import Snapshot

    found = []
    last = store.current_number
    for number in range(last, 0, -1):
        store.roll_back(number)
        found.append(Snapshot.load(store, served_here=True))
    return found


def run(store: Store, *, requests: int, seconds: float, swap_s: float, often: float) -> Any:
    """Soak an assistant; return what was found."""
    live = LiveStore(store.root)
    limits = EngineLimits(max_batch=24, max_context=512, max_adapters=2)
    config = ServeConfig(limits=limits, max_new_tokens=16)
    service = Service(load_host(store.config), live, config=config)
    faults = Faults(service, often=often)
    started = time.monotonic()
    tally = asyncio.run(
        soak(service, versions(store, live), requests=requests, seconds=seconds, swap_s=swap_s)
    )
    took = time.monotonic() - started
    differing = check_alone(store, tally)
    settled = tally.rss_mb[len(tally.rss_mb) // 3 :] or [0.0]
    half = max(1, len(settled) // 2)
    return {
        "requests": sum(tally.outcomes.values()),
        "seconds": round(took, 1),
        "outcomes": dict(sorted(tally.outcomes.items())),
        "faults": dict(faults.counts),
        "version_swaps": tally.swaps,
        "questions": len(tally.answers),
        "answers_checked": sum(sum(found.values()) for _, found in tally.answers.values()),
        "answers_that_differ": differing,
        "wrong": tally.wrong[:20],
        "rss_mb": [
            {
                "first_half": round(statistics.median(settled[:half]), 1),
                "second_half": round(statistics.median(settled[half:] or settled), 1),
                "largest": round(max(settled), 1),
            }
        ],
    }


SUMMED = ("requests", "seconds", "version_swaps", "answers_checked", "answers_that_differ")


def together(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return the results of two soaks as one; memory is told of each process."""
    total = {name: round(before[name] + now[name], 1) for name in SUMMED}
    for name in ("outcomes", "faults"):
        counts = collections.Counter(before[name])
        counts.update(now[name])
        total[name] = dict(sorted(counts.items()))
    return {
        **total,
        "questions": max(before["questions"], now["questions"]),
        "wrong": [*before["wrong"], *now["wrong"]][:20],
        "rss_mb": [*before["rss_mb"], *now["rss_mb"]],
    }


def main() -> None:
    """Soak, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--add", action="store_true", help="to the results that are there")
    parser.add_argument("--results", type=Path, default=MEASURED)
    options = parser.parse_args()
    before = kept("serving_truth", options.results) if options.add else None
    sys.path.insert(0, str(ROOT / "tests"))  # the tiny model is the tests' own
    from conftest import save_tiny_model
    from serving_server import make_versions

    with tempfile.TemporaryDirectory() as scratch:
        model = save_tiny_model(Path(scratch) / "model")
        store = make_versions(Path(scratch) / "assistant", model)
        result = run(
            store,
            requests=options.requests - (before["requests"] if before else 0),
            seconds=60 * options.minutes,
            swap_s=SWAP_S,
            often=1.0,
        )
    if before:
        result = together(before, result)
    keep("serving_truth", result, options.results)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
