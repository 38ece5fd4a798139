"""Two real vLLM servers behind the gateway: one slow, one killed, one behind by a version.

    LCIA_VLLM=/path/to/vllm/bin/vllm PYTHONPATH=tests python -m benchmarks.serving_vllm

Clients ask all the time for a tiny assistant's groups, routed and by name, streamed and whole,
while its servers are stopped and continued in turns, killed, told to end, started again, and get
other adapters under the same names. Each answer is compared with the one that a vLLM server with
that version gives when it is asked directly and for nothing else. A failure was avoidable if
another server that has the version was up from the request's beginning to its end. Kept as
serving_vllm.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measured import MEASURED, keep
from conftest import save_tiny_model
from lcia.exports.vllm import export_vllm
from lcia.learner import Store
from lcia.serving.config import AccessConfig
from lcia.serving.gateway.app import Gateway, GatewayConfig, build_gateway
from lcia.serving.live import LiveStore
from serving_server import make_versions, running

VLLM, LLAMA_SERVER = "LCIA_VLLM", "LCIA_LLAMA_SERVER"
START_S = 300.0
CLIENTS = 6
OPTIONS = [
    *("--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--max-num-seqs", "8"),
    # Adapters exchanged at runtime take new slots, and the last one has to stay free: see export.
    *("--max-loras", "8", "--max-cpu-loras", "8"),
]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
COLOURS = [f"Say the letter of the colour.\n\n{word} 7" for word in ("green", "red", "blue")]
NUMBERS = [f"Write this number as a digit.\n\n{word} 7" for word in ("one", "two", "three")]
QUESTIONS = {"g1": COLOURS, "g2": NUMBERS, "base": [*COLOURS, *NUMBERS]}
HOW = {"max_tokens": 16, "temperature": 0, "logit_bias": {"0": -100}}
"""Greedy and without an end, so that all are of one length: an answer that is cut short differs."""
TRAINING = {"max_steps": 4, "learning_rate": 2e-2, "save_steps": 100}
"""Enough for each version to say something else."""


def program() -> str | None:
    """Return where vLLM is: ``LCIA_VLLM``, else on the path; None if it is not."""
    return shutil.which(os.environ.get(VLLM) or "vllm")


def llama_server() -> str | None:
    """Return where llama.cpp's server is, in the same way."""
    return shutil.which(os.environ.get(LLAMA_SERVER) or "llama-server")


def required_program() -> str:
    """Return where vLLM is; end with what to do if it is not."""
    if (vllm := program()) is None:
        raise SystemExit(f"vLLM is not on the path; set {VLLM} to where the program is.")
    return vllm


def draw_request(dice: random.Random) -> tuple[str, str, dict[str, Any]]:
    """Return a group (or ``base``), a question of it, and a request: routed or by name."""
    group = dice.choice(["g1", "g2", "base"])
    question = dice.choice(QUESTIONS[group])
    routed = group != "base" and dice.random() < 0.5
    return (
        group,
        question,
        {
            "model": "assistant" if routed else group,
            "messages": [{"role": "user", "content": question}],
            "stream": dice.random() < 0.3,
            **HOW,
        },
    )


async def ask_one(http: httpx.AsyncClient, model: str, question: str) -> str:
    """Return what a server answers when it is asked for nothing else."""
    messages = [{"role": "user", "content": question}]
    asked = {"model": model, "messages": messages, **HOW}
    answer = await http.post("/v1/chat/completions", json=asked)
    text, problem = read(answer, stream=False)
    assert not problem, answer.text
    return text


def save_model(folder: Path) -> Path:
    """Write a tiny Llama whose heads are as large as vLLM wants them; return its folder."""
    return save_tiny_model(folder, hidden_size=64, num_attention_heads=2)


class Server:
    """A server of an export, started and ended as often as one likes; always on the same port.

    Args:
        program: that the export's script runs: vLLM's, or llama.cpp's server.
        log: what it says.
        options: of the program.
        environment: beyond this one's.

    Attributes:
        adapters: group to the adapter that it serves under the group's name; empty while it is not
            known to be up.
        since: when that was last changed.
    """

    def __init__(
        self,
        program: str,
        log: Path,
        *,
        options: Sequence[str] = OPTIONS,
        environment: Mapping[str, str] = ENVIRONMENT,
    ) -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.adapters: dict[str, str] = {}
        self.since = 0.0
        self._program, self._log = program, log
        self._options, self._environment = options, environment
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, exported: Path) -> None:
        """Serve an export, by the script in it; return once it answers."""
        path = f"{Path(self._program).parent}:{os.environ['PATH']}"
        command = [exported / "serve.sh", "--port", str(self.port), "--host", "127.0.0.1"]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._options],
                env={**kept, **self._environment, "PATH": path},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + START_S
        async with httpx.AsyncClient() as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{self.url}/health")).status_code == 200:
                        break
                if self._process.poll() is not None or time.monotonic() > end:
                    said = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
                    raise SystemExit(f"{self._program} did not start:\n{said}")
                await asyncio.sleep(0.5)
        about = json.loads((exported / "lcia.json").read_text(encoding="utf-8"))
        self._has(about["adapters"])

    async def exchange(self, group: str, folder: Path) -> None:
        """Serve another adapter under a group's name, while answers are being generated."""
        others = {name: adapter for name, adapter in self.adapters.items() if name != group}
        self._has(others)
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as client:
            for path, body in (
                ("/v1/unload_lora_adapter", {"lora_name": group}),
                ("/v1/load_lora_adapter", {"lora_name": group, "lora_path": str(folder)}),
            ):
                (await client.post(path, json=body)).raise_for_status()
        self._has({**others, group: folder.name})

    @property
    def group(self) -> int:
        """Its process group."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes; if it ends them, it is down from now on."""
        if number not in (signal.SIGSTOP, signal.SIGCONT):
            self._has({})
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, number)

    def terminate(self) -> None:
        """Do what an operator does: ask it to end."""
        assert self._process is not None
        self._has({})
        self._process.terminate()

    async def ended(self) -> None:
        """Wait until all of it has ended."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, 60)
        self.signal(signal.SIGKILL)  # whatever outlived it
        await asyncio.to_thread(self._process.wait)

    @contextlib.asynccontextmanager
    async def slow(self) -> AsyncIterator[None]:
        """Let it work a quarter of the time."""

        async def stutter() -> None:
            while True:
                self.signal(signal.SIGSTOP)
                await asyncio.sleep(0.75)
                self.signal(signal.SIGCONT)
                await asyncio.sleep(0.25)

        task = asyncio.create_task(stutter())
        try:
            yield
        finally:
            task.cancel()
            self.signal(signal.SIGCONT)

    def _has(self, adapters: dict[str, str]) -> None:
        self.adapters, self.since = dict(adapters), time.monotonic()

    def could_have_answered(self, group: str, adapter: str, started: float) -> bool:
        """Whether it was up with an adapter since ``started``; any of them has the base model."""
        had = self.adapters.get(group) == adapter or (group == "base" and bool(self.adapters))
        return had and self.since <= started


@dataclass
class Tally:
    """What came of the requests.

    Attributes:
        outcomes: what they were told, how often.
        by_server: who answered, by phase.
        wrong: answers that are not their version's.
        avoidable: failures that another server would have avoided.
    """

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    phases: dict[str, collections.Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    avoidable: list[str] = field(default_factory=list)


class Trial:
    """Clients, a gateway, and the servers behind it.

    Args:
        store: the assistant, whose version the gateway follows.
        url: of the gateway.
        servers: behind it.
        expected: adapter (or ``base``) and question to the answer.
    """

    def __init__(
        self,
        store: Store,
        url: str,
        servers: list[Server],
        expected: dict[tuple[str, str], str],
    ) -> None:
        self.store, self.url, self.servers, self.expected = store, url, servers, expected
        self.tally = Tally()
        self.phase = ""
        self.current: list[tuple[float, dict[str, str]]] = []
        self.new_version()

    def new_version(self) -> None:
        """Note that the store has another current version."""
        adapters = {group: key for group, (key, _) in self.store.current.adapters.items()}
        self.current.append((time.monotonic(), adapters))

    async def client(self, draw: random.Random, over: asyncio.Event) -> None:
        """Ask again and again."""
        async with httpx.AsyncClient(base_url=self.url, timeout=120) as client:
            while not over.is_set():
                group, question, asked = draw_request(draw)
                started = time.monotonic()
                answer = await client.post("/v1/chat/completions", json=asked)
                self.judge(group, question, answer, started=started, stream=asked["stream"])

    def judge(
        self, group: str, question: str, answer: httpx.Response, *, started: float, stream: bool
    ) -> None:
        """Count an answer, and say what is wrong with it."""
        counts = self.tally.phases.setdefault(self.phase, collections.Counter())
        counts["requests"] += 1
        # The gateway looks for new versions once a second; until then the earlier one is right.
        moments = [moment for moment, _ in self.current[1:]] + [float("inf")]
        right = [
            adapters.get(group, "base")
            for (_, adapters), until in zip(self.current, moments, strict=True)
            if until + 3 > started
        ]
        adapter = answer.headers.get("x-lcia-adapter", "base")
        text, problem = read(answer, stream=stream)
        if not problem:
            known = self.expected.get((adapter, question))
            if adapter in right and text == known:
                counts["right"] += 1
            else:
                counts["wrong"] += 1
                self.tally.wrong.append(
                    f"{self.phase}: {group}, {question!r}: said to be {adapter} (right: {right}): "
                    f"{text!r} instead of {known!r}"
                )
            return
        counts[problem] += 1
        if problem.startswith("cut"):
            return  # its client has the beginning: nobody else can end it
        for server in self.servers:
            if any(server.could_have_answered(group, one, started) for one in right):
                self.tally.avoidable.append(
                    f"{self.phase}: {group}: {problem}: {answer.text[:200]}"
                )
                break


def read(answer: httpx.Response, *, stream: bool) -> tuple[str, str]:
    """Return the text of an answer, and what is wrong with it, if anything is."""
    if answer.status_code != 200:
        try:
            code = answer.json()["error"]["code"]
        except (ValueError, KeyError, TypeError):
            code = answer.text[:50]
        return "", f"{answer.status_code} {code}"
    if not stream:
        return answer.json()["choices"][0]["message"]["content"] or "", ""
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    pieces = [json.loads(event) for event in events if event != "[DONE]"]
    text = "".join(
        piece["choices"][0]["delta"].get("content") or "" for piece in pieces if "choices" in piece
    )
    broke = any("error" in piece for piece in pieces) or not events or events[-1] != "[DONE]"
    return text, "cut after its first piece" if broke else ""


async def ask_directly(server: Server) -> dict[tuple[str, str], str]:
    """Ask a server everything, one by one: adapter and question to the answer."""
    found = {}
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        for name, questions in QUESTIONS.items():
            for question in questions:
                text = await ask_one(client, name, question)
                found[server.adapters.get(name, "base"), question] = text
    return found


@contextlib.contextmanager
def gateway_before(store: Store, urls: list[str], **settings: Any) -> Iterator[tuple[str, Gateway]]:
    """Run a gateway, by default as it is by default; yield its address and itself."""
    access = AccessConfig(port=0)
    config = GatewayConfig(upstreams=urls, access=access, **settings)
    gateway = Gateway(LiveStore(store.root, served_here=False), config=config)
    with running(build_gateway(gateway), access) as url:
        yield url, gateway


async def play(trial: Trial, exports: dict[int, Path], *, calm_s: float) -> None:
    """Do to the servers what happens to servers; each phase lasts ``calm_s`` at least."""
    first, second = trial.servers

    async def phase(name: str) -> None:
        trial.phase = name
        print(f"{name} ...", file=sys.stderr, flush=True)

    await phase("one is behind by a version, and slow")
    async with second.slow():
        await asyncio.sleep(calm_s)
    await phase("that one is killed, and comes back with the current version")
    second.signal(signal.SIGKILL)
    await second.ended()
    await second.start(exports[3])
    await asyncio.sleep(calm_s)
    await phase("the other one is killed and comes back, while this one is slow")
    async with second.slow():
        first.signal(signal.SIGKILL)
        await first.ended()
        await asyncio.sleep(calm_s)
    await first.start(exports[3])
    await asyncio.sleep(calm_s)
    await phase("one is told to end, and comes back with the version before")
    second.terminate()
    await second.ended()
    await second.start(exports[2])
    await asyncio.sleep(calm_s)
    await phase("adapters are exchanged under their names, back and forth")
    for number, key in ((3, "g1@0003"), (2, "g1@0001"), (3, "g1@0003"), (2, "g1@0001")):
        await second.exchange("g1", exports[number] / "adapters" / key)
        await asyncio.sleep(max(6, calm_s / 2))  # the gateway looks every five seconds
    await phase("the assistant is rolled back: the one behind is the current one")
    trial.store.roll_back(2)
    trial.new_version()
    await asyncio.sleep(calm_s)


async def run(vllm: str, scratch: Path, *, calm_s: float) -> dict[str, Any]:
    """Make an assistant, serve it, disturb its servers; return what was found."""
    store = make_versions(scratch / "assistant", save_model(scratch / "model"), training=TRAINING)
    exports = {}
    for number in (3, 2):
        store.roll_back(number)
        exports[number] = scratch / f"version{number}"
        export_vllm(store, exports[number])
    store.roll_back(3)
    servers = [Server(vllm, scratch / f"vllm{i}.log") for i in (1, 2)]
    started = time.monotonic()
    try:
        await asyncio.gather(*map(Server.start, servers, (exports[3], exports[2])))
        expected = await ask_directly(servers[1])
        newer = await ask_directly(servers[0])
        shared = expected.keys() & newer.keys()
        assert all(expected[key] == newer[key] for key in shared), "they differ where they are one"
        expected |= newer
        for question in COLOURS:
            assert expected["g1@0001", question] != expected["g1@0003", question]
        over = asyncio.Event()
        with gateway_before(store, [server.url for server in servers]) as (url, _):
            trial = Trial(store, url, servers, expected)
            clients = [
                asyncio.create_task(trial.client(random.Random(i), over)) for i in range(CLIENTS)
            ]
            playing = asyncio.create_task(play(trial, exports, calm_s=calm_s))
            await asyncio.wait([playing, *clients], return_when=asyncio.FIRST_COMPLETED)
            over.set()
            await asyncio.gather(playing, *clients)
    finally:
        for server in servers:
            if server._process is not None:
                server.signal(signal.SIGCONT)
                server.signal(signal.SIGKILL)
    version = subprocess.run([vllm, "--version"], capture_output=True, text=True, check=True)
    total = sum(trial.tally.phases.values(), collections.Counter())
    return {
        "vllm": version.stdout.split()[-1],
        "seconds": round(time.monotonic() - started),
        "total": dict(total),
        "phases": {name: dict(counts) for name, counts in trial.tally.phases.items()},
        "wrong_versions": trial.tally.wrong,
        "avoidable_failures": trial.tally.avoidable,
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calm", type=float, default=15, help="seconds of each phase")
    parser.add_argument("--results", type=Path, default=MEASURED)
    options = parser.parse_args()
    vllm = required_program()
    with tempfile.TemporaryDirectory() as scratch:
        result = asyncio.run(run(vllm, Path(scratch), calm_s=options.calm))
    keep("serving_vllm", result, options.results)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
