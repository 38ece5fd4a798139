"""Hours of bad manners in minutes: does the server stay up, answer, refuse clearly, and not grow?

    python -m benchmarks.serving_soak --minutes 10    # kept as serving_soak

Good clients ask and check their answers. Others leave mid-stream, send broken JSON, bodies of
50 MB, wrong keys, names that look like paths and prompts that are too long. Memory is the
server's resident set, sampled every second; the first third of the time is warm-up.
"""

import argparse
import asyncio
import collections
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measured import MEASURED, keep
from benchmarks.serving_server import INSTRUCTIONS, ServerProcess, make_store, prompt, server

KEY = "the-soak-has-a-key-of-its-own"
PATH = "/v1/chat/completions"
BROKEN = [b"", b"{", b"[" * 100_000, b'{"model": NaN}', b"\xff\xfe", b'{"messages": 5}', b"null"]
NAMES = ["../../etc/passwd", "/etc/passwd", "groups/g1/0001", "g1\0", "..%2f..%2f", "x" * 4000]
HUGE = 50 << 20


@dataclass
class Tally:
    """What happened.

    Attributes:
        answers: what was sent, and the status that came back, to how often.
        wrong: what should not have happened.
        rss_mb: seconds since the start, and the server's memory.
    """

    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    rss_mb: list[tuple[float, float]] = field(default_factory=list)

    def expect(self, kind: str, answer: httpx.Response, status: int) -> None:
        """Count an answer; another status than expected, or an unclear error, is wrong."""
        self.answers[f"{kind}: {answer.status_code}"] += 1
        if answer.status_code != status:
            self.wrong.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
        elif status >= 400 and len(answer.json()["error"]["message"]) < 10:
            self.wrong.append(f"{kind}: unclear: {answer.text[:200]}")


def body(**more: Any) -> dict[str, Any]:
    """Return a request that is answered at once and briefly."""
    number = random.randrange(10**6)
    task = random.choice(list(INSTRUCTIONS))
    messages = [{"role": "user", "content": prompt(task, number)}]
    return {"model": "assistant", "messages": messages, "max_tokens": 12, **more}


async def ask_well(client: httpx.AsyncClient, tally: Tally) -> None:
    """Ask something, streamed or not, and check that the answer is whole."""
    if random.random() < 0.5:
        answer = await client.post(PATH, json=body())
        tally.expect("good", answer, 200)
        if answer.status_code == 200 and not answer.json()["choices"][0]["finish_reason"]:
            tally.wrong.append("good: no finish_reason")
        return
    async with client.stream("POST", PATH, json=body(stream=True)) as answer:
        text = "".join([piece async for piece in answer.aiter_text()])
    tally.answers[f"good stream: {answer.status_code}"] += 1
    if answer.status_code != 200 or not text.endswith("data: [DONE]\n\n"):
        tally.wrong.append(f"good stream: {answer.status_code} {text[-200:]}")


async def leave(client: httpx.AsyncClient, tally: Tally) -> None:
    """Disconnect in the middle of a stream, or run out of patience before it begins."""
    patience = random.uniform(0.02, 0.5) if random.random() < 0.5 else 120
    try:
        async with client.stream(
            "POST", PATH, json=body(stream=True, max_tokens=200), timeout=patience
        ) as answer:
            pieces = answer.aiter_bytes()
            for _ in range(random.randrange(1, 12)):
                await anext(pieces)
            tally.answers["left mid-stream"] += 1
    except httpx.TimeoutException:
        tally.answers["left while waiting"] += 1


async def send_broken_json(client: httpx.AsyncClient, tally: Tally) -> None:
    """Send something that is not a request."""
    headers = {"Content-Type": "application/json"}
    answer = await client.post(PATH, content=random.choice(BROKEN), headers=headers)
    tally.expect("broken JSON", answer, 400)


async def send_too_much(client: httpx.AsyncClient, tally: Tally) -> None:
    """Send 50 MB, with and without saying so beforehand."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(HUGE >> 20):
            yield b" " * (1 << 20)

    content: Any = pieces() if random.random() < 0.5 else b" " * HUGE
    headers = {"Content-Type": "application/json"}
    answer = await client.post(PATH, content=content, headers=headers)
    tally.expect("50 MB", answer, 413)
    await asyncio.sleep(2)


async def use_wrong_key(client: httpx.AsyncClient, tally: Tally) -> None:
    """Guess a key."""
    headers = {"Authorization": f"Bearer {KEY[: random.randrange(len(KEY))]}x"}
    answer = await client.post(PATH, json=body(), headers=headers)
    tally.expect("wrong key", answer, 401)


async def ask_for_a_path(client: httpx.AsyncClient, tally: Tally) -> None:
    """Ask for a model whose name looks like a path."""
    answer = await client.post(PATH, json=body(model=random.choice(NAMES)))
    tally.expect("path-like name", answer, 404)


async def ask_too_long(client: httpx.AsyncClient, tally: Tally) -> None:
    """Send a prompt that does not fit."""
    messages = [{"role": "user", "content": "word " * random.choice((4000, 400_000))}]
    answer = await client.post(PATH, json=body(messages=messages))
    tally.expect("too long", answer, 400)


Manners = Callable[[httpx.AsyncClient, Tally], Awaitable[None]]
BAD: tuple[Manners, ...] = (
    send_broken_json,
    send_too_much,
    use_wrong_key,
    ask_for_a_path,
    ask_too_long,
)


async def soak(process: ServerProcess, *, seconds: float) -> Tally:
    """Let good and bad clients at the server for some time."""
    tally = Tally()
    started = time.monotonic()

    async def keep_on(manners: Manners, pause_s: float) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=process.url, headers=headers, timeout=120) as client:
            while time.monotonic() - started < seconds:
                try:
                    await manners(client, tally)
                except httpx.TransportError as error:
                    name = getattr(manners, "__name__", "")
                    tally.wrong.append(f"{name}: {type(error).__name__}: {error}")
                await asyncio.sleep(pause_s)

    async def watch() -> None:
        while time.monotonic() - started < seconds:
            tally.rss_mb.append((round(time.monotonic() - started, 1), process.rss_mb()))
            await asyncio.sleep(1)

    good = [keep_on(ask_well, 0.05) for _ in range(6)]
    leaving = [keep_on(leave, 0.2) for _ in range(3)]
    await asyncio.gather(watch(), *good, *leaving, *(keep_on(manners, 0.5) for manners in BAD))
    return tally


def growth(rss_mb: list[tuple[float, float]]) -> dict[str, float]:
    """Return the memory after warm-up: medians of two halves of what follows, and the slope."""
    end = rss_mb[-1][0]
    settled = [(t, value) for t, value in rss_mb if t > end / 3]
    half = len(settled) // 2
    times, values = zip(*settled, strict=True)
    return {
        "at_start_mb": rss_mb[0][1],
        "first_half_mb": statistics.median(values[:half]),
        "second_half_mb": statistics.median(values[half:]),
        "largest_mb": max(value for _, value in rss_mb),
        "slope_mb_per_hour": 3600 * statistics.linear_regression(times, values).slope,
    }


def main() -> None:
    """Soak, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--store", type=Path, help="keep the assistant here; default: temporary")
    parser.add_argument("--results", type=Path, default=MEASURED)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = make_store(options.store or Path(scratch) / "assistant").root
        keys = Path(scratch) / "keys"
        keys.touch(mode=0o600)
        keys.write_text(KEY)
        log = Path(scratch) / "log"
        with server(store, log, ["--api-key-file", str(keys)]) as process:
            tally = asyncio.run(soak(process, seconds=60 * options.minutes))
            headers = {"Authorization": f"Bearer {KEY}"}
            metrics = httpx.get(f"{process.url}/metrics", headers=headers).text
        tracebacks = log.read_text(encoding="utf-8").count("Traceback")
    left = {
        name: float(line.split()[-1])
        for line in metrics.splitlines()
        if (name := line.split()[0]) in ("lcia_running", "lcia_waiting", "lcia_cancelled_total")
    }
    result = {
        "minutes": options.minutes,
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "answers": dict(sorted(tally.answers.items())),
        "wrong": tally.wrong[:50],
        "wrong_count": len(tally.wrong),
        "tracebacks": tracebacks,
        "at_the_end": left,
        "memory": growth(tally.rss_mb),
        "rss_mb": tally.rss_mb[:: max(1, len(tally.rss_mb) // 60)],
    }
    keep("serving_soak", result, options.results)
    print(json.dumps({name: value for name, value in result.items() if name != "rss_mb"}, indent=1))


if __name__ == "__main__":
    main()
