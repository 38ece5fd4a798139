"""Clients as they are published, each installed into a folder of its own, call both servers.

Their programs are beside this file. The table in docs/serving.md is what they told;
LCIA_WRITE_TABLE=1 writes it anew. Two real vLLM servers stand behind the gateway, too, disturbed or
kept in sync while clients ask: LCIA_VLLM says where the program vllm is, in an environment of its
own; CONTRIBUTING.md says how to get one that runs on a CPU.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import serving_vllm, vllm_releases
from benchmarks.serving_vllm import VLLM, program
from lcia.serving.config import AccessConfig
from lcia.serving.gateway.app import Gateway, GatewayConfig, build_gateway
from lcia.serving.live import LiveStore
from serving_server import make_store, running, serving

pytestmark = pytest.mark.slow
needs_vllm = pytest.mark.skipif(
    program() is None, reason=f"vLLM is not on the path; {VLLM} names the program"
)
HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "serving.md"
BEGIN, END = "<!-- clients: begin -->\n", "<!-- clients: end -->\n"
CALLS = ("answer", "stream", "conversation", "text", "models", "too_long", "object")

PYTHON = {  # client: its package, its program
    "openai (Python)": ("openai", "openai_python"),
    "litellm": ("litellm", "litellm_calls"),
    "langchain-openai, `ChatOpenAI`": ("langchain-openai", "langchain_chat"),
    "langchain-openai, `OpenAI`": ("langchain-openai", "langchain_text"),
    "llm": ("llm", "llm_command"),
    "pydantic-ai": ("pydantic-ai-slim[openai]", "pydantic_ai_agent"),
    "openai-agents": ("openai-agents", "openai_agents"),
    "instructor (`MD_JSON`)": ("instructor", "instructor_calls"),
    "Open WebUI's requests": ("httpx", "open_webui"),
}
NPM = ("openai", "@ai-sdk/openai-compatible", "ai")
JAVASCRIPT = {
    "openai (JavaScript)": ("openai", "openai_js"),
    "@ai-sdk/openai-compatible": ("@ai-sdk/openai-compatible", "ai_sdk"),
}


def run(*arguments, **more):
    return subprocess.run(
        [*map(str, arguments)], capture_output=True, text=True, check=False, timeout=600, **more
    )


@pytest.fixture(scope="module")
def urls(tmp_path_factory, tiny_model):
    """A server, and a gateway before it."""
    store = make_store(tmp_path_factory.mktemp("store") / "assistant", tiny_model)
    access = AccessConfig(port=0)
    with serving(store, access=access, max_new_tokens=24) as (server, _):
        config = GatewayConfig(upstreams=[server], access=access)
        gateway = Gateway(LiveStore(store.root, served_here=False), config=config)
        with running(build_gateway(gateway), access) as before_it:
            yield f"{server}/v1", f"{before_it}/v1"


@pytest.fixture(scope="module")
def uv(tmp_path_factory):
    """An installer that takes seconds a client where pip takes minutes."""
    folder = tmp_path_factory.mktemp("uv")
    run(sys.executable, "-m", "venv", folder)
    done = run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "uv")
    if done.returncode:
        pytest.skip(f"the package registry cannot be reached: {done.stderr.strip()[-200:]}")
    return folder / "bin" / "uv"


@pytest.fixture(scope="module")
def npm(tmp_path_factory):
    """A folder with the clients of JavaScript."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("npm")
    if (asked := run("npm", "view", NPM[0], "version", cwd=folder)).returncode:
        pytest.skip(f"the npm registry cannot be reached: {asked.stderr.strip()[-200:]}")
    done = run("npm", "install", "--no-audit", "--no-fund", *NPM, cwd=folder)
    assert done.returncode == 0, done.stderr
    shutil.copy(HERE / "programs.mjs", folder)  # it finds its packages from where it lies
    return folder


@pytest.fixture(scope="module")
def table():
    """What every client told, client to its row; rows of clients that were left out stay."""
    rows = {}
    yield rows
    if os.environ.get("LCIA_WRITE_TABLE"):
        head, begin, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
        shown, end, tail = rest.partition(END)
        kept = {line.split(" | ")[0].lstrip("| "): line for line in shown.splitlines()[2:]}
        lines = [
            line for client in (*PYTHON, *JAVASCRIPT) if (line := {**kept, **rows}.get(client))
        ]
        names = [call.replace("_", " ") for call in CALLS]
        lines[:0] = [
            f"| client | version | {' | '.join(names)} |",
            "| --- " * len(names) + "| --- | --- |",
        ]
        DOCS.write_text(head + begin + "".join(f"{line}\n" for line in lines) + end + tail)


def row(client, version, calls):
    cells = ["✓" if call in calls else "–" for call in CALLS]
    return f"| {client} | {version} | {' | '.join(cells)} |"


def check(done, program):
    """Return the calls that a program made; all of them worked."""
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"call')]
    assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"
    assert told, f"{program} told nothing"
    wrong = {one["call"]: one["wrong"] for one in told if one["wrong"]}
    assert not wrong, f"{program}: {json.dumps(wrong, indent=2)}"
    return {one["call"] for one in told}


def through_both(urls, *command, **more):
    server, gateway = (check(run(*command, url, **more), command[-1]) for url in urls)
    assert server == gateway
    return server


@pytest.mark.parametrize("client", PYTHON)
def test_a_python_client_as_it_is(client, urls, uv, table, tmp_path):
    package, program = PYTHON[client]
    python = tmp_path / "bin" / "python"
    run(uv, "venv", "--quiet", "--clear", tmp_path, "--python", sys.executable)
    done = run(uv, "pip", "install", "--quiet", "--python", python, package)
    assert done.returncode == 0, done.stderr
    shown = run(uv, "pip", "show", "--python", python, package.partition("[")[0])
    (version,) = (
        line.split()[1] for line in shown.stdout.splitlines() if line.startswith("Version:")
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OPENAI"))}
    calls = through_both(urls, python, HERE / "programs.py", program, env=plain)
    table[client] = row(client, "–" if package == "httpx" else version, calls)


@pytest.mark.parametrize("client", JAVASCRIPT)
def test_a_javascript_client_as_it_is(client, urls, npm, table):
    package, program = JAVASCRIPT[client]
    about = json.loads((npm / "node_modules" / package / "package.json").read_text())
    table[client] = row(
        client, about["version"], through_both(urls, "node", npm / "programs.mjs", program)
    )


def test_the_table_in_the_docs_has_every_client():
    shown = DOCS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    for client in (*PYTHON, *JAVASCRIPT):
        assert f"| {client} |" in shown


@needs_vllm
def test_two_vllm_servers_never_answer_with_a_wrong_version_nor_fail_needlessly(tmp_path):
    found = asyncio.run(serving_vllm.run(program(), tmp_path, calm_s=6))
    assert found["wrong_versions"] == []
    assert found["avoidable_failures"] == []
    assert found["total"]["right"] > 100
    assert all(counts["right"] for counts in found["phases"].values())
    assert len(found["phases"]) == 6


@needs_vllm
def test_releases_and_roll_backs_reach_two_vllm_servers_and_no_request_fails(tmp_path):
    found = asyncio.run(vllm_releases.run(program(), tmp_path, pause_s=1))
    assert found["failed"] == []
    assert found["wrong_answers"] == []
    assert found["wrong_versions"] == []
    assert len(found["by_version"]) == found["releases"] + 1
    assert found["distinct_answers"] > found["releases"]
    assert all("base@zeros" in names for names in found["served_at_the_end"])
