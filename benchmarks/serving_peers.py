"""``lcia serve`` beside vLLM for the CPU and llama.cpp's server, on the same weights, in turns.

    export LCIA_VLLM=/path/to/vllm/bin/vllm LCIA_LLAMA_SERVER=/path/to/llama-server
    PYTHONPATH=tests python -m benchmarks.serving_peers      # kept as serving_peers

A program that is not there is left out. All servers run all the time; whoever has no turn is
stopped (SIGSTOP), so that the one that is asked has the machine. ``lcia serve`` routes; vLLM is
asked for its groups by name; llama.cpp's server has no names, and is asked through ``lcia
gateway``, which routes as well.

``bound`` is what the memory allows one client: the weights are read once a token, and this machine
reads so many bytes a second (the best of ten sums over 1 GiB).
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.measured import MEASURED, keep
from benchmarks.serving_server import INSTRUCTIONS, make_store, prompt, server
from benchmarks.serving_vllm import ENVIRONMENT, Server, llama_server, program
from benchmarks.speed.decode import bandwidth
from lcia.exports.gguf import export_llama_cpp
from lcia.exports.vllm import export_vllm
from lcia.learner import Store
from lcia.models.loading import load_model

CLIENTS = {1: 3, 8: 16, 32: 64}
"""Clients at once, and the answers of one turn."""

TOKENS = 64
BASE, MIX = "base", "mix of 4"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server that takes turns.

    Attributes:
        name: of the program.
        url: of the server.
        groups: its process groups.
        models: kind to the models that are asked for in turns.
    """

    name: str
    url: str
    groups: tuple[int, ...]
    models: dict[str, list[str]]

    def let(self, *, run: bool) -> None:
        """Let it run, or stop it."""
        for group in self.groups:
            os.killpg(group, signal.SIGCONT if run else signal.SIGSTOP)


async def ask(http: httpx.AsyncClient, model: str, number: int) -> tuple[float, int]:
    """Return when the first token of an answer came, in seconds, and how many came."""
    content = prompt(list(INSTRUCTIONS)[number % 4], number)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
    }
    begun, first, tokens = time.perf_counter(), 0.0, 0
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line.removeprefix("data: "))["choices"]
            if choices and choices[0]["delta"].get("content"):
                first = first or time.perf_counter() - begun
                tokens += 1  # all three send one event a token
    return first, tokens


async def turn(peer: Peer, kind: str, clients: int, seed: int) -> dict[str, Any]:
    """Return tokens per second and first tokens of some clients at once."""
    numbers = iter(range(seed, seed + CLIENTS[clients]))
    found: list[tuple[float, int]] = []
    async with httpx.AsyncClient(base_url=peer.url, timeout=600) as http:

        async def client() -> None:
            for number in numbers:
                models = peer.models[kind]
                found.append(await ask(http, models[number % len(models)], number))

        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        seconds = time.perf_counter() - begun
    return {
        "tokens_per_s": sum(tokens for _, tokens in found) / seconds,
        "first_s": statistics.median(first for first, _ in found),
        "tokens": sum(tokens for _, tokens in found),
    }


def measure(peers: list[Peer], *, rounds: int) -> list[dict[str, Any]]:
    """Return one record a server, kind and number of clients; in each round all take a turn."""
    cases = [(clients, kind) for clients in CLIENTS for kind in (BASE, MIX)]
    turns: dict[tuple[int, str, str], list[dict[str, Any]]] = {}
    for peer in peers:
        peer.let(run=False)
    for number in range(-1, rounds):  # the first warms up
        for clients, kind in cases:
            able = [peer for peer in peers if kind in peer.models]
            if number < 0 and clients == 32:
                continue
            for peer in able[number % len(able) :] + able[: number % len(able)]:
                peer.let(run=True)
                seed = 1000 * (number + 1) + 10 * clients
                found = asyncio.run(turn(peer, kind, clients, seed))
                peer.let(run=False)
                if number >= 0:
                    turns.setdefault((clients, kind, peer.name), []).append(found)
    for peer in peers:
        peer.let(run=True)
    return [
        {
            "clients": clients,
            "kind": kind,
            "server": name,
            "tokens_per_s": round(statistics.median(t["tokens_per_s"] for t in found), 1),
            "first_token_s": round(statistics.median(t["first_s"] for t in found), 3),
            "turns": [round(t["tokens_per_s"], 1) for t in found],
            "tokens": sum(t["tokens"] for t in found),
        }
        for (clients, kind, name), found in turns.items()
    ]


@contextmanager
def served(peer: Server, exported: Path) -> Iterator[int]:
    """Start a server of an export; yield its process group."""
    asyncio.run(peer.start(exported))
    try:
        yield peer.group
    finally:
        peer.signal(signal.SIGKILL)


def run(scratch: Path, store: Store, *, vllm: str | None, llama: str | None, rounds: int) -> Any:
    """Start the servers, let them take turns; return what was found."""
    groups = list(store.current.adapters)
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
    peers = []
    dtype, weights = _weights(store)
    with ExitStack() as stack:
        ours = stack.enter_context(server(store.root, scratch / "lcia.log", environment=threads))
        models = {BASE: ["base"], MIX: ["assistant"]}
        peers.append(Peer(name="lcia", url=ours.url, groups=(ours.pid,), models=models))
        if vllm:
            export_vllm(store, scratch / "vllm")
            other = Server(
                vllm,
                scratch / "vllm.log",
                options=["--dtype", dtype, "--max-model-len", "1024", "--max-num-seqs", "64"],
                environment={**ENVIRONMENT, **threads, "VLLM_CPU_KVCACHE_SPACE": "2"},
            )
            pid = stack.enter_context(served(other, scratch / "vllm"))
            models = {BASE: ["base"], MIX: groups}
            peers.append(Peer(name="vLLM", url=other.url, groups=(pid,), models=models))
        if llama:
            export_llama_cpp(store, scratch / "llama")
            options = ["--threads", str(os.cpu_count()), "--parallel", "32", "--ctx-size", "32768"]
            other = Server(llama, scratch / "llama.log", options=options, environment={})
            pid = stack.enter_context(served(other, scratch / "llama"))
            behind = ["--upstream", other.url, "--store"]
            gateway = stack.enter_context(
                server(store.root, scratch / "gateway.log", verb=("gateway", *behind))
            )
            models = {BASE: ["base"], MIX: ["assistant"]}
            both = (pid, gateway.pid)
            peers.append(Peer(name="llama.cpp", url=gateway.url, groups=both, models=models))
        rows = measure(peers, rounds=rounds)
    read = bandwidth()
    return {
        "rows": rows,
        "dtype": dtype,
        "weights_mb": round(weights / 1e6, 1),
        "reads_gb_per_s": round(read / 1e9, 1),
        "bound_tokens_per_s": round(read / weights, 1),
        "machine": {
            "cores": os.cpu_count(),
            "cpu": torch.cpu.get_capabilities().get("cpu_name"),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "load_before": os.getloadavg()[0],
        },
    }


def _weights(store: Store) -> tuple[str, int]:
    """Return the dtype in which ``lcia serve`` has the base model's weights, and their bytes."""
    model = load_model(store.config.model, dtype=store.config.dtype).model
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return str(model.dtype).removeprefix("torch."), size


def table(result: dict[str, Any]) -> str:
    """Return the table of docs/serving.md."""
    cells = {(r["clients"], r["kind"], r["server"]): r for r in result["rows"]}
    names = list(dict.fromkeys(r["server"] for r in result["rows"]))
    head = " | ".join(names)
    over = "".join(f" lcia / {name} |" for name in names[1:])
    lines = [
        f"| clients | kind | {head} |{over} first token, s: {' / '.join(names)} |",
        "| --- " * (3 + 2 * len(names) - 1) + "|",
    ]
    for clients in CLIENTS:
        for kind in (BASE, MIX):
            found = [cells.get((clients, kind, name)) for name in names]
            own = found[0]["tokens_per_s"] if found[0] else 0.0
            speeds = " | ".join(f"{c['tokens_per_s']:.0f}" if c else "–" for c in found)
            ratios = " | ".join(f"{own / c['tokens_per_s']:.2f}" if c else "–" for c in found[1:])
            firsts = " / ".join(f"{c['first_token_s']:.2f}" if c else "–" for c in found)
            lines.append(f"| {clients} | {kind} | {speeds} | {ratios} | {firsts} |")
    own = cells[1, BASE, "lcia"]["tokens_per_s"]
    lines.append(
        f"\nBound of one client: {result['weights_mb']:.0f} MB of weights in {result['dtype']} "
        f"a token at {result['reads_gb_per_s']:.1f} GB/s: "
        f"{result['bound_tokens_per_s']:.0f} tokens/s; of it "
        + ", ".join(
            f"{name} {cells[1, BASE, name]['tokens_per_s'] / result['bound_tokens_per_s']:.2f}"
            for name in names
        )
        + "."
    )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="keep the assistant here; default: temporary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=MEASURED)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = make_store(options.store or folder / "assistant")
        found = run(
            folder,
            store,
            vllm=program(),
            llama=llama_server(),
            rounds=options.rounds,
        )
    keep("serving_peers", found, options.results)
    print(table(found))


if __name__ == "__main__":
    main()
