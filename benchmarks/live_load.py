"""Eight clients that never stop, a worker that learns, three releases: what do the clients notice?

    export PYTHONPATH=tests
    python -m benchmarks.live_load                        # kept as live_load
    python -m benchmarks.live_load --model smollm2-135m   # the embedded model, for longer

Every answer is compared with what the version that its receipt names gives alone, afterwards. The
worker is the server's child, as ``lcia serve --learn`` starts it; each release is tried on a share
of the traffic first. The machine's load is written beside the figures: they are of this machine.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.gate import KNOWN, pretrain, table_of, task_of
from benchmarks.measured import MEASURED, keep
from benchmarks.serving_server import server
from lcia.config import AssistantConfig
from lcia.learner import ContinualLearner
from lcia.live.worker import NICE

CLIENTS, RELEASES, TOKENS = 8, 3, 24
AROUND_S = 5.0
"""Seconds before and after a version's first answer that count as its release."""
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One answer, as its client saw it; times in seconds since the start."""

    prompt: str
    version: int
    text: str
    begun: float
    first: float
    ended: float


@dataclass
class Load:
    """What the clients saw."""

    url: str
    prompts: Sequence[str]
    answers: list[Seen] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[None]:
        """Let all clients ask until the end of the block."""
        over = asyncio.Event()
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as http:
            working = [asyncio.create_task(self._ask(http, i, over)) for i in range(CLIENTS)]
            try:
                yield
            finally:
                over.set()
                await asyncio.gather(*working)

    def now(self) -> float:
        """Return seconds since the start."""
        return time.monotonic() - self.started

    async def _ask(self, http: httpx.AsyncClient, client: int, over: asyncio.Event) -> None:
        dice = random.Random(client)
        while not over.is_set():
            prompt = dice.choice(self.prompts)
            try:
                self.answers.append(await self._one(http, prompt))
            except (httpx.HTTPError, ValueError, KeyError) as error:
                self.failed.append(f"{self.now():.1f} s: {type(error).__name__}: {error}"[:300])

    async def _one(self, http: httpx.AsyncClient, prompt: str) -> Seen:
        begun, first, texts, done = self.now(), None, [], False
        body = {**asked("assistant", prompt), "stream": True}
        async with http.stream("POST", CHAT, json=body) as response:
            if response.status_code != 200:
                raise ValueError((await response.aread()).decode()[:200])
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    piece = event["choices"][0]["delta"].get("content", "")
                    if piece and first is None:
                        first = self.now()
                    texts.append(piece)
        if not done:
            raise ValueError("the stream broke off")
        ended = self.now()
        return Seen(
            prompt=prompt,
            version=int(response.headers["x-lcia-version"]),
            text="".join(texts),
            begun=begun,
            first=ended if first is None else first,
            ended=ended,
        )


def asked(model: str, prompt: str) -> dict[str, Any]:
    """Return a request that is answered greedily."""
    turn = {"role": "user", "content": prompt}
    return {"model": model, "messages": [turn], "max_tokens": TOKENS, "temperature": 0}


async def learn(http: httpx.AsyncClient, number: int, steps: dict[str, int]) -> dict[str, Any]:
    """Order a job and wait for its end; return it."""
    task = task_of(f"job-{number}", f"Which box ({number})?", table_of(random.Random(number)))
    lines = [
        {
            "messages": [
                {"role": "user", "content": s.prompt},
                {"role": "assistant", "content": s.answers[0]},
            ]
        }
        for s in task.train
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    form = {"file": (f"job-{number}.jsonl", content)}
    file = (await http.post("/v1/files", files=form, data={"purpose": "fine-tune"})).json()
    order = {
        "model": "assistant",
        "training_file": file["id"],
        "suffix": f"job-{number}",
        "method": {"type": "supervised", "supervised": {"hyperparameters": steps}},
        "metadata": {"lcia_instruction": "first_line", "lcia_max_new_tokens": "8"},
    }
    job = (await http.post("/v1/fine_tuning/jobs", json=order)).json()
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        await asyncio.sleep(0.5)
        job = (await http.get(f"/v1/fine_tuning/jobs/{job['id']}")).json()
    return dict(job)


async def run(url: str, prompts: Sequence[str], *, seconds: float, epochs: int) -> dict[str, Any]:
    """Ask without and with learning; return what the clients saw."""
    load = Load(url, prompts)
    busy = [os.getloadavg()[0]]
    jobs, spans = [], []
    async with httpx.AsyncClient(base_url=url, timeout=600) as http, load.clients():
        await asyncio.sleep(seconds)
        quiet = load.now()
        for number in range(RELEASES):
            begun = load.now()
            jobs.append(await learn(http, number, {"n_epochs": epochs, "batch_size": 16}))
            spans.append((begun, load.now()))
            busy.append(os.getloadavg()[0])
            await asyncio.sleep(seconds / RELEASES)
    wrong = await compare(url, load.answers)
    began = {}
    for one in load.answers:
        began.setdefault(one.version, one.begun)
    releases = [at for at in began.values() if at > quiet]
    around = [a for a in load.answers if any(abs(a.begun - at) < AROUND_S for at in releases)]
    still = [a.ended - a.begun for a in load.answers if a.ended < quiet]
    learning = [a.ended - a.begun for a in load.answers if any(b <= a.begun < e for b, e in spans)]
    return {
        "clients": CLIENTS,
        "requests": len(load.answers) + len(load.failed),
        "failed": load.failed,
        "wrong": wrong,
        "versions": {str(v): sum(a.version == v for a in load.answers) for v in sorted(began)},
        "jobs": [{k: job[k] for k in ("status", "fine_tuned_model", "error")} for job in jobs],
        "p50_s": {"without": p(still, 50), "learning": p(learning, 50)},
        "p99_s": {"without": p(still, 99), "learning": p(learning, 99)},
        "p99_ratio": round(p(learning, 99) / p(still, 99), 2),
        "longest_first_token_s": {
            "around a release": round(max((a.first - a.begun for a in around), default=0), 3),
            "else": round(max(a.first - a.begun for a in load.answers if a not in around), 3),
        },
        "load_average": [round(value, 2) for value in busy],
        "processors": os.cpu_count(),
    }


async def compare(url: str, answers: Sequence[Seen]) -> list[str]:
    """Return the answers that differ from what their version gives alone."""
    alone: dict[tuple[int, str], str] = {}
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        for version, prompt in sorted({(a.version, a.prompt) for a in answers}):
            response = await http.post(CHAT, json=asked(f"assistant@{version}", prompt))
            said = response.json()["choices"][0]["message"]["content"]
            alone[version, prompt] = said
    return [
        f"version {a.version} to {a.prompt!r}: {a.text!r}, alone {alone[a.version, a.prompt]!r}"
        for a in answers
        if a.text != alone[a.version, a.prompt]
    ]


def p(values: Sequence[float], percent: int) -> float:
    """Return a percentile in seconds."""
    return round(statistics.quantiles(values, n=100)[percent - 1], 4)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: a small Llama made here")
    parser.add_argument("--seconds", type=float, default=45, help="of load without learning")
    parser.add_argument("--epochs", type=int, default=8, help="of each job")
    parser.add_argument("--nice", type=int, help="of the worker, on a machine that others use")
    parser.add_argument("--results", type=Path, default=MEASURED)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        host = None if given.model else pretrain(folder / "model", steps=100)
        config = AssistantConfig(
            model=given.model or str(folder / "model"),
            dtype="float32",
            training={"max_steps": 40, "learning_rate": 3e-3, "per_device_train_batch_size": 16},
            gate={"tests": "none"},  # every job is to be a release
        )
        learner = ContinualLearner.create(folder / "assistant", config, host=host)
        task = task_of("first", KNOWN, table_of(random.Random("first")))
        learner.learn(task)
        prompts = [s.prompt for s in task.test[:12]]
        prompts += [f"Which box ({n})?\n\n{w}" for n in range(3) for w in ("bada", "gomo")]
        prompts += ["Why is the sky blue?", "Tell me about the Amazon river."]
        options = ["--learn", "--max-context", "512", "--canary", "0.3", "--canary-answers", "60"]
        with ExitStack() as stack:
            if given.nice is not None:
                options += ["--no-worker"]
                stack.enter_context(worker(folder / "assistant", nice=given.nice))
            running = stack.enter_context(server(folder / "assistant", folder / "log", options))
            found = asyncio.run(
                run(running.url, prompts, seconds=given.seconds, epochs=given.epochs)
            )
    told = {
        "model": given.model or "a Llama of 2 layers",
        "worker_nice": NICE if given.nice is None else given.nice,
    }
    keep("live_load", {**told, **found}, given.results)


@contextmanager
def worker(store: Path, *, nice: int) -> Iterator[None]:
    """Run a worker of another niceness than the server's child has."""
    command = [sys.executable, "-m", "lcia", "worker", str(store), "--threads", "1"]
    process = subprocess.Popen([*command, "--nice", str(nice)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
