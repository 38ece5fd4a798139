"""Twenty releases and five roll-backs under load, on two real vLLM servers kept in sync.

    LCIA_VLLM=/path/to/vllm/bin/vllm PYTHONPATH=tests python -m benchmarks.vllm_releases

The versions are made first; then clients ask all the time, routed and by name, streamed and whole,
for two groups and the base model, while one version after another becomes current and ``lcia
gateway --sync`` brings it to both servers. One of them is killed and started again in between.
Afterwards every answer is compared with what a server of its own gives with that adapter alone.
Kept as vllm_releases.
"""

import argparse
import asyncio
import collections
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measured import MEASURED, keep
from benchmarks.serving_vllm import (
    CLIENTS,
    QUESTIONS,
    TRAINING,
    Server,
    ask_one,
    draw_request,
    gateway_before,
    read,
    required_program,
    save_model,
)
from conftest import make_task
from lcia.exports.vllm import export_vllm
from lcia.learner import ContinualLearner, Store
from serving_server import make_store

RELEASES, BACK = 20, 5
MOVE_S = 120.0
"""How long a release may take until it answers; else the trial has failed."""

WORDS = ["cyan", "pink", "gold", "grey", "teal", "ruby", "jade", "lime", "navy", "plum"]
DIGITS = ["three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "zero"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer: what was asked for, who is said to have answered, and what it said."""

    group: str
    question: str
    version: int
    adapter: str
    text: str
    begun: float
    ended: float


@dataclass
class Trial:
    """Clients of a gateway, and the releases that they live through.

    Attributes:
        answers: complete ones.
        failed: the others, without those that a killed server cut after their first piece.
        cut: how many those are.
        current: when which version became current in the store.
    """

    store: Store
    url: str
    answers: list[Answer] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    cut: int = 0
    current: list[tuple[float, int]] = field(default_factory=list)
    moves: list[float] = field(default_factory=list)

    def make_current(self, number: int) -> None:
        """Release a version, or roll back to it."""
        self.store.roll_back(number)
        self.current.append((time.monotonic(), number))

    async def client(self, dice: random.Random, over: asyncio.Event) -> None:
        """Ask again and again."""
        async with httpx.AsyncClient(base_url=self.url, timeout=300) as http:
            while not over.is_set():
                await self._ask(http, dice)

    async def _ask(self, http: httpx.AsyncClient, dice: random.Random) -> None:
        group, question, asked = draw_request(dice)
        begun = time.monotonic()
        answer = await http.post("/v1/chat/completions", json=asked)
        text, problem = read(answer, stream=asked["stream"])
        if problem.startswith("cut"):
            self.cut += 1
        elif problem:
            self.failed.append(f"{group}: {problem}: {answer.text[:200]}")
        else:
            self.answers.append(
                Answer(
                    group=group,
                    question=question,
                    version=int(answer.headers["x-lcia-version"]),
                    adapter=answer.headers.get("x-lcia-adapter", "base"),
                    text=text,
                    begun=begun,
                    ended=time.monotonic(),
                )
            )

    async def moved(self, number: int) -> None:
        """Wait until a version answers; note how long that took."""
        begun = self.current[-1][0]
        while not any(a.version == number and a.begun > begun for a in self.answers):
            if time.monotonic() - begun > MOVE_S:
                raise SystemExit(f"version {number} does not answer; failures: {self.failed[-5:]}")
            await asyncio.sleep(0.2)
        self.moves.append(time.monotonic() - begun)

    def stale(self) -> list[str]:
        """Return the answers of a version that was current neither at nor after their beginning.

        Until all servers have a new version the one before is right, and so it is while the new one
        is current in the store but answered nothing yet.
        """
        first = {
            index: min(
                (a.begun for a in self.answers if a.version == number and a.begun > since),
                default=float("inf"),
            )
            for index, (since, number) in enumerate(self.current)
        }
        wrong = []
        for a in self.answers:
            allowed = {
                number
                for index, (since, number) in enumerate(self.current)
                if since <= a.ended and first.get(index + 1, float("inf")) >= a.begun
            }
            if a.version not in allowed:
                wrong.append(f"version {a.version} instead of {sorted(allowed)}: {a.question!r}")
        return wrong


def make_versions(root: Path, model: Path) -> Store:
    """Return an assistant of two groups that are retrained in turns: one version per release."""
    store = make_store(root, model, training=TRAINING)
    learner = ContinualLearner(store)
    colour, number = (QUESTIONS[group][0].partition("\n")[0] for group in ("g1", "g2"))
    for i in range(RELEASES // 2):
        word, digit = WORDS[i], DIGITS[i]
        learner.learn(make_task(f"shade-{word}", colour, {word: word[0], "blue": "b"}))
        learner.learn(make_task(f"digit-{digit}", number, {digit: str(i % 10), "two": "2"}))
    return store


async def play(trial: Trial, servers: list[Server], exported: Path, *, pause_s: float) -> None:
    """Release and roll back; kill a server in between and start it again."""
    first = trial.store.current.number
    back = {4 * (i + 1) for i in range(BACK)}
    restart = None
    for i in range(1, RELEASES + 1):
        print(f"release {i} of {RELEASES} ...", file=sys.stderr, flush=True)
        trial.make_current(first + i)
        if i == RELEASES // 2:
            servers[1].signal(signal.SIGKILL)
            await servers[1].ended()
            restart = asyncio.create_task(servers[1].start(exported))
        await trial.moved(first + i)
        await asyncio.sleep(pause_s)
        if i in back:
            trial.make_current(first + i - 1)
            await trial.moved(first + i - 1)
            await asyncio.sleep(pause_s)
            trial.make_current(first + i)
            await trial.moved(first + i)
    if restart:
        await restart
        await asyncio.sleep(max(10.0, pause_s))  # it gets the current version and answers


async def directly(
    server: Server, folder: Path, asked: set[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """Ask a server that answers nobody else: adapter and question to the answer."""
    found = {}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        names = [m["id"] for m in (await http.get("/v1/models")).json()["data"]]
        for adapter, question in sorted(asked):
            name = "base" if adapter == "base" else f"{adapter}-alone"
            if name not in names:
                body = {"lora_name": name, "lora_path": str(folder / adapter)}
                (await http.post("/v1/load_lora_adapter", json=body)).raise_for_status()
                names.append(name)
            found[adapter, question] = await ask_one(http, name, question)
    return found


async def run(vllm: str, scratch: Path, *, pause_s: float) -> dict[str, Any]:
    """Make an assistant, serve it, release; return what was found."""
    store = make_versions(scratch / "assistant", save_model(scratch / "model"))
    last = store.current.number
    store.roll_back(last - RELEASES)
    exported, folder = scratch / "exported", scratch / "shared"
    export_vllm(store, exported)
    servers = [Server(vllm, scratch / f"vllm{i}.log") for i in (1, 2)]
    started = time.monotonic()
    try:
        await asyncio.gather(*(server.start(exported) for server in servers))
        plain = {("base", question) for question in QUESTIONS["base"]}
        expected = await directly(servers[0], folder, plain)
        over = asyncio.Event()
        urls = [server.url for server in servers]
        with gateway_before(store, urls, sync_folder=folder) as (url, gateway):
            trial = Trial(store, url)
            trial.current.append((time.monotonic(), store.current.number))
            clients = [
                asyncio.create_task(trial.client(random.Random(i), over)) for i in range(CLIENTS)
            ]
            playing = asyncio.create_task(play(trial, servers, exported, pause_s=pause_s))
            await asyncio.wait([playing, *clients], return_when=asyncio.FIRST_COMPLETED)
            over.set()
            await asyncio.gather(playing, *clients)
            served = [sorted(upstream.models) for upstream in gateway.upstreams.all]
        asked = {(a.adapter, a.question) for a in trial.answers} - plain
        expected |= await directly(servers[0], folder, asked)
    finally:
        for server in servers:
            if server._process is not None:
                server.signal(signal.SIGKILL)
    wrong = [
        f"{a.adapter} to {a.question!r}: {a.text!r} instead of {expected[a.adapter, a.question]!r}"
        for a in trial.answers
        if a.text != expected[a.adapter, a.question]
    ]
    return {
        "seconds": round(time.monotonic() - started),
        "releases": RELEASES,
        "roll_backs": BACK,
        "requests": len(trial.answers) + len(trial.failed) + trial.cut,
        "failed": trial.failed,
        "cut_by_the_kill": trial.cut,
        "wrong_answers": wrong,
        "wrong_versions": trial.stale(),
        "distinct_answers": len(set(expected.values())),
        "by_version": dict(collections.Counter(str(a.version) for a in trial.answers)),
        "moved_s": {
            "median": round(statistics.median(trial.moves), 1),
            "longest": round(max(trial.moves), 1),
        },
        "served_at_the_end": served,
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pause", type=float, default=3, help="seconds between two releases")
    parser.add_argument("--results", type=Path, default=MEASURED)
    options = parser.parse_args()
    vllm = required_program()
    with tempfile.TemporaryDirectory() as scratch:
        result = asyncio.run(run(vllm, Path(scratch), pause_s=options.pause))
    keep("vllm_releases", result, options.results)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
