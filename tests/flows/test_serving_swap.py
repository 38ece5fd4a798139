"""New versions while clients ask: the server takes them over, the gateway brings them to others."""

import asyncio
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from safetensors.torch import load_file

from conftest import make_task, save_tiny_model
from lcia.errors import ConfigError
from lcia.learner import ContinualLearner, Store
from lcia.serving.config import AccessConfig
from lcia.serving.engine.limits import EngineLimits
from lcia.serving.gateway.app import Gateway, GatewayConfig, build_gateway
from lcia.serving.live import LiveStore
from serving_server import COLOUR, NUMBER, make_versions, running, serving

LETTER = "Write the next letter of the alphabet.\n\na 7"


def ask(client, text, **options):
    return client.chat.completions.create(
        model="assistant", messages=[{"role": "user", "content": text}], **options
    )


@pytest.fixture
def store(tmp_path, served_store):
    shutil.copytree(served_store.root, tmp_path / "assistant")
    return Store.open(tmp_path / "assistant")


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_version_is_committed_while_eight_clients_stream(store):
    task = make_task("letters", LETTER.partition("\n")[0], {"a": "b", "c": "d"})
    answered, failures = [], []
    stopping = threading.Event()

    def stream_on(url, text):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            while not stopping.is_set():
                started = time.monotonic()
                try:
                    chunks = list(ask(client, text, stream=True, max_tokens=60))
                    assert chunks[-1].choices[0].finish_reason
                    answered.append((started, chunks[0].lcia["version"]))
                except (openai.APIError, AssertionError) as error:
                    failures.append(error)

    with serving(store) as (url, service):
        clients = [
            threading.Thread(target=stream_on, args=(url, text)) for text in [COLOUR, NUMBER] * 4
        ]
        for client in clients:
            client.start()
        wait_for(lambda: len(answered) >= 8)
        ContinualLearner(store).learn(task)  # a model of its own, as another process has
        wait_for(lambda: service.live.current.number == 3)
        swapped = time.monotonic()
        wait_for(lambda: sum(version == 3 for _, version in answered) >= 16)
        stopping.set()
        for client in clients:
            client.join()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            told = ask(client, LETTER, max_tokens=4).lcia
            assert (told["group"], told["adapter"], told["version"]) == ("g3", "g3@0003", 3)
            assert "g3" in [model.id for model in client.models.list()]
        store.roll_back(2)
        wait_for(lambda: httpx.get(f"{url}/readyz").json()["version"] == 2)
    assert failures == []
    assert {version for _, version in answered} == {2, 3}
    assert {version for started, version in answered if started > swapped} == {3}
    assert any(moment < swapped for moment, _ in answered)


def test_running_answers_finish_on_the_version_they_began_with(store):
    with serving(store) as (url, service):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            expected = ask(client, COLOUR, max_tokens=200).choices[0].message.content
            stream = ask(client, COLOUR, max_tokens=200, stream=True)
            chunks = [next(stream)]
            store.roll_back(1)
            wait_for(lambda: service.live.current.number == 1)
            shutil.rmtree(store.root / "groups" / "g1")  # worse than any version does
            chunks += list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == expected


def test_a_version_that_cannot_be_served_leaves_the_old_one_in_service(store, caplog):
    with serving(store) as (url, _):
        folder = store.version(1).adapters["g1"][1]
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
        store.roll_back(1)
        wait_for(lambda: "version 2 stays in service" in caplog.text)
        assert "uses use_dora" in caplog.text
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            assert ask(client, NUMBER, max_tokens=2).lcia["version"] == 2


def test_a_full_queue_says_when_to_come_back(served_store):
    limits = EngineLimits(max_batch=1, max_waiting=1)
    with serving(served_store, limits=limits, max_new_tokens=400) as (url, service):
        body = {"model": "base", "messages": [{"role": "user", "content": "go on"}]}

        def post(**more):
            return httpx.post(f"{url}/v1/chat/completions", json={**body, **more}, timeout=60)

        waiting = [threading.Thread(target=post) for _ in range(2)]
        for thread in waiting:
            thread.start()
        engine = service.answers.engine
        wait_for(lambda: engine.running == 1 and engine.waiting == 1)
        for stream in (False, True):
            refused = post(stream=stream)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        for thread in waiting:
            thread.join()
        assert post(max_tokens=2).status_code == 200


def test_an_answer_that_takes_too_long(served_store):
    body = {"model": "base", "messages": [{"role": "user", "content": "go on"}]}
    late = r"not finished in 0\.15 s"
    with (
        serving(served_store, max_new_tokens=400, timeout_s=0.15) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError, match=late) as refused:
            client.chat.completions.create(**body)
        assert refused.value.status_code == 504
        with pytest.raises(openai.APIError, match=late):
            list(client.chat.completions.create(**body, stream=True))


def test_sigterm_lets_running_answers_end(store, tmp_path):
    command = [sys.executable, "-m", "lcia", "serve", str(store.root), "--port", "0"]
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen(
        [*command, "--max-context", "512"], stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        wait_for(lambda: "listening on" in (tmp_path / "log").read_text(), seconds=120)
        url = (tmp_path / "log").read_text().split("listening on ")[1].split()[0]
        wait_for(lambda: ready(url))
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = ask(client, COLOUR, max_tokens=300, stream=True)
            chunks = [next(stream)]
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(openai.APIConnectionError):
                ask(client, NUMBER, max_tokens=1)
            chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


def ready(url):
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_the_example_answers_with_two_groups_and_the_base_in_one_batch(served_store, capsys):
    path = Path(__file__).parents[2] / "examples" / "engine.py"
    example = runpy.run_path(str(path))
    answers = example["main"](str(served_store.root), "g1", "g2", COLOUR)
    assert len(answers) == 3
    assert "\n".join(answers) in capsys.readouterr().out


OPEN = AccessConfig(port=0)


class Loading:
    """A server that loads and unloads adapters at run time, as vLLM does.

    Attributes:
        adapters: name to the folder that it was read from.
        may_load: cleared, loading waits.
        may_answer: cleared, answering waits.
        asked: the models that were asked for.
    """

    def __init__(self, *, takes_adapters=True):
        self.adapters, self.asked = {}, []
        self.may_load, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_load.set(), self.may_answer.set()
        self.app = FastAPI()
        self.app.state.end = lambda: None
        self.app.get("/v1/models")(self.models)
        for path in ("chat/completions", "responses", "messages"):
            self.app.post(f"/v1/{path}")(self.answer)
        if takes_adapters:
            self.app.post("/v1/load_lora_adapter")(self.load)
            self.app.post("/v1/unload_lora_adapter")(self.unload)

    async def models(self):
        base = [{"id": "base", "root": "org/model", "parent": None}]
        return {
            "data": base
            + [{"id": n, "root": str(f), "parent": "base"} for n, f in self.adapters.items()]
        }

    async def load(self, request: Request):
        asked = await request.json()
        while not self.may_load.is_set():
            await asyncio.sleep(0.01)
        name, folder = asked["lora_name"], Path(asked["lora_path"])
        if name in self.adapters:
            return JSONResponse({"error": {"message": f"{name} has already been loaded"}}, 400)
        if not (folder / "adapter_config.json").is_file():
            return JSONResponse({"error": {"message": f"No adapter found for {folder}"}}, 404)
        assert load_file(folder / "adapter_model.safetensors")
        self.adapters[name] = folder
        return f"Success: LoRA adapter '{name}' added successfully."

    async def unload(self, request: Request):
        del self.adapters[(await request.json())["lora_name"]]
        return "Success"

    async def answer(self, request: Request):
        model = (await request.json())["model"]
        if model != "base" and model not in self.adapters:
            return JSONResponse({"error": {"message": f"no {model}"}}, 404)
        self.asked.append(model)
        while not self.may_answer.is_set():
            await asyncio.sleep(0.01)
        return {"model": model, "choices": []}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def released(tmp_path, model):
    """Three versions: 1 has g1@0001, 2 adds g2@0002, 3 has g1@0003; the second is current."""
    released = make_versions(tmp_path / "assistant", model)
    released.roll_back(2)
    return released


@pytest.fixture
def pair():
    servers = [Loading(), Loading()]
    with ExitStack() as stack:
        yield servers, [stack.enter_context(running(server.app, OPEN)) for server in servers]


@contextmanager
def in_sync(released, urls, **settings):
    settings = {"check_s": 0.05, "poll_s": 0.05, "sync_keep_s": 0.3, **settings}
    folder = settings.pop("sync_folder", released.root / "vllm")
    config = GatewayConfig(upstreams=urls, access=OPEN, sync_folder=folder, **settings)
    gateway = Gateway(LiveStore(released.root, served_here=False), config=config)
    with running(build_gateway(gateway), OPEN) as url:
        yield url, gateway


def ask_gateway(url, model="assistant", path="/v1/chat/completions", **fields):
    asked = {"model": model, "messages": [{"role": "user", "content": COLOUR}], **fields}
    return httpx.post(f"{url}{path}", json=asked, timeout=20)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


VERSION_2 = {"base@zeros", "g1@0001", "g2@0002"}
VERSION_3 = {"base@zeros", "g1@0003", "g2@0002"}


def test_traffic_moves_once_every_server_has_the_new_version(released, pair):
    servers, urls = pair
    with in_sync(released, urls) as (url, _):
        until(lambda: all(set(s.adapters) == VERSION_2 for s in servers))
        assert ask_gateway(url).json()["model"] == "g1@0001"
        servers[1].may_load.clear()
        released.roll_back(3)
        until(lambda: "g1@0003" in servers[0].adapters)
        time.sleep(0.3)
        answers = [ask_gateway(url) for _ in range(4)]
        assert {(a.json()["model"], a.headers["x-lcia-version"]) for a in answers} == {
            ("g1@0001", "2")
        }
        servers[1].may_load.set()
        until(lambda: ask_gateway(url).headers["x-lcia-version"] == "3")
        for server in servers:
            server.asked.clear()
        assert {ask_gateway(url).json()["model"] for _ in range(4)} == {"g1@0003"}
        assert [server.asked for server in servers] == [["g1@0003"] * 2] * 2, "they take turns"
        until(lambda: all(set(s.adapters) == VERSION_3 for s in servers))
        released.roll_back(2)
        until(lambda: ask_gateway(url).json()["model"] == "g1@0001")


def test_an_adapter_stays_until_its_last_answer_ended(released, pair):
    servers, urls = pair
    with in_sync(released, urls[:1]) as (url, gateway), httpx.Client(timeout=20) as client:
        server = servers[0]
        until(lambda: set(server.adapters) == VERSION_2)
        server.may_answer.clear()
        with ThreadPoolExecutor(1) as pool:
            body = {"model": "assistant", "messages": [{"role": "user", "content": COLOUR}]}
            answer = pool.submit(client.post, f"{url}/v1/chat/completions", json=body)
            until(lambda: server.asked == ["g1@0001"])
            released.roll_back(3)
            until(lambda: gateway.live.current.number == 3)
            time.sleep(0.8)  # twice as long as it is kept
            assert "g1@0001" in server.adapters
            server.may_answer.set()
            assert answer.result().json()["model"] == "g1@0001"
        until(lambda: set(server.adapters) == VERSION_3)


def test_a_server_that_starts_anew_gets_the_version_again(released, pair):
    servers, urls = pair
    with in_sync(released, urls) as (url, _):
        until(lambda: all(set(s.adapters) == VERSION_2 for s in servers))
        servers[0].adapters.clear()
        assert all(ask_gateway(url).status_code == 200 for _ in range(4))
        until(lambda: set(servers[0].adapters) == VERSION_2)


def test_a_past_version_is_lent_for_a_while(released, pair):
    servers, urls = pair
    released.roll_back(3)
    with in_sync(released, urls) as (url, _):
        until(lambda: all(set(s.adapters) == VERSION_3 for s in servers))
        answer = ask_gateway(url, "assistant@2")
        assert answer.json()["model"] == "g1@0001"
        assert answer.headers["x-lcia-version"] == "2"
        assert sum("g1@0001" in s.adapters for s in servers) == 1
        until(lambda: all(set(s.adapters) == VERSION_3 for s in servers))


def test_the_base_model_is_asked_for_as_an_adapter_of_zeros(released, pair):
    servers, urls = pair
    with in_sync(released, urls[:1]) as (url, _):
        until(lambda: set(servers[0].adapters) == VERSION_2)
        assert ask_gateway(url, "base").json()["model"] == "base@zeros"
        zeros = load_file(released.root / "vllm" / "base@zeros" / "adapter_model.safetensors")
        assert zeros
        assert not any(tensor.any() for tensor in zeros.values())
        learned = load_file(released.root / "vllm" / "g1@0001" / "adapter_model.safetensors")
        assert learned.keys() == zeros.keys()
        assert all(tensor.any() for tensor in learned.values())


def test_a_server_that_takes_no_adapters_is_told_of_and_nothing_is_asked_of_it(released, caplog):
    server = Loading(takes_adapters=False)
    with running(server.app, OPEN) as upstream, in_sync(released, [upstream]) as (url, _):
        until(lambda: "takes no adapters at run time" in caplog.text)
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in caplog.text
        refused = ask_gateway(url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_upstream")
        assert "the gateway's log says which" in refused.text
        assert "lcia_upstreams_behind 1.0" in httpx.get(f"{url}/metrics").text
        assert server.asked == []
        time.sleep(0.3)
        assert len([r for r in caplog.records if "at run time" in r.message]) <= 3, "told once"


def test_a_folder_that_the_servers_do_not_see_is_said(released, pair, caplog):
    _, urls = pair
    with in_sync(released, urls[:1], sync_seen_as="/not/there") as (url, _):
        until(lambda: "--sync-seen-as" in caplog.text)
        assert "from /not/there/base@zeros" in caplog.text
        assert ask_gateway(url).status_code == 503


def test_another_assistants_adapter_of_the_same_name_never_answers(released, pair, caplog):
    servers, urls = pair
    servers[0].adapters["g1@0001"] = Path("/another/assistant/g1@0001")
    with in_sync(released, urls[:1]) as (url, _):
        until(lambda: "An assistant needs servers of its own" in caplog.text)
        assert ask_gateway(url).status_code == 503
        assert servers[0].asked == []
        assert "g1@0001" in servers[0].adapters, "it is not ours to unload"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/responses", {"input": COLOUR}),
        ("/v1/responses", {"input": "green 7", "instructions": COLOUR.partition("\n")[0]}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"text": COLOUR}]}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"text": COLOUR}]}]}),
        (
            "/v1/messages",
            {
                "system": [{"type": "text", "text": COLOUR.partition("\n")[0]}],
                "messages": [{"role": "user", "content": "green 7"}],
            },
        ),
    ],
)
def test_requests_of_other_apis_are_routed_by_what_they_say(released, pair, path, fields):
    _, urls = pair
    with in_sync(released, urls[:1]) as (url, _):
        answer = httpx.post(f"{url}{path}", json={"model": "assistant", **fields}, timeout=20)
        assert answer.json()["model"] == "g1@0001"
        empty = httpx.post(f"{url}{path}", json={"model": "assistant"}, timeout=20)
        assert empty.json()["error"]["code"] == "invalid_messages"


def test_settings_of_the_sync_want_the_sync(released):
    from lcia.cli.gateway import gateway

    with pytest.raises(ConfigError, match="belong to --sync"):
        gateway(["http://127.0.0.1:1"], released.root, sync_folder=released.root / "x")
