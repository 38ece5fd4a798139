"""A gateway that keeps servers in sync, before servers that load adapters as vLLM does.

The same against real vLLM: tests/clients/test_vllm.py.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from safetensors.torch import load_file

from conftest import save_tiny_model
from lcia.errors import ConfigError
from lcia.serving.config import AccessConfig
from lcia.serving.gateway.app import Gateway, GatewayConfig, build_gateway
from lcia.serving.live import LiveStore
from serving_server import COLOUR, make_versions, running

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
def store(tmp_path, model):
    """Three versions: 1 has g1@0001, 2 adds g2@0002, 3 has g1@0003; the second is current."""
    store = make_versions(tmp_path / "assistant", model)
    store.roll_back(2)
    return store


@pytest.fixture
def pair():
    servers = [Loading(), Loading()]
    with ExitStack() as stack:
        yield servers, [stack.enter_context(running(server.app, OPEN)) for server in servers]


@contextmanager
def in_sync(store, urls, **settings):
    settings = {"check_s": 0.05, "poll_s": 0.05, "sync_keep_s": 0.3, **settings}
    folder = settings.pop("sync_folder", store.root / "vllm")
    config = GatewayConfig(upstreams=urls, access=OPEN, sync_folder=folder, **settings)
    gateway = Gateway(LiveStore(store.root, served_here=False), config=config)
    with running(build_gateway(gateway), OPEN) as url:
        yield url, gateway


def ask(url, model="assistant", path="/v1/chat/completions", **fields):
    asked = {"model": model, "messages": [{"role": "user", "content": COLOUR}], **fields}
    return httpx.post(f"{url}{path}", json=asked, timeout=20)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


VERSION_2 = {"base@zeros", "g1@0001", "g2@0002"}
VERSION_3 = {"base@zeros", "g1@0003", "g2@0002"}


def test_traffic_moves_once_every_server_has_the_new_version(store, pair):
    servers, urls = pair
    with in_sync(store, urls) as (url, _):
        until(lambda: all(set(s.adapters) == VERSION_2 for s in servers))
        assert ask(url).json()["model"] == "g1@0001"
        servers[1].may_load.clear()
        store.roll_back(3)
        until(lambda: "g1@0003" in servers[0].adapters)
        time.sleep(0.3)
        answers = [ask(url) for _ in range(4)]
        assert {(a.json()["model"], a.headers["x-lcia-version"]) for a in answers} == {
            ("g1@0001", "2")
        }
        servers[1].may_load.set()
        until(lambda: ask(url).headers["x-lcia-version"] == "3")
        for server in servers:
            server.asked.clear()
        assert {ask(url).json()["model"] for _ in range(4)} == {"g1@0003"}
        assert [server.asked for server in servers] == [["g1@0003"] * 2] * 2, "they take turns"
        until(lambda: all(set(s.adapters) == VERSION_3 for s in servers))
        store.roll_back(2)
        until(lambda: ask(url).json()["model"] == "g1@0001")


def test_an_adapter_stays_until_its_last_answer_ended(store, pair):
    servers, urls = pair
    with in_sync(store, urls[:1]) as (url, gateway), httpx.Client(timeout=20) as client:
        server = servers[0]
        until(lambda: set(server.adapters) == VERSION_2)
        server.may_answer.clear()
        with ThreadPoolExecutor(1) as pool:
            body = {"model": "assistant", "messages": [{"role": "user", "content": COLOUR}]}
            answer = pool.submit(client.post, f"{url}/v1/chat/completions", json=body)
            until(lambda: server.asked == ["g1@0001"])
            store.roll_back(3)
            until(lambda: gateway.live.current.number == 3)
            time.sleep(0.8)  # twice as long as it is kept
            assert "g1@0001" in server.adapters
            server.may_answer.set()
            assert answer.result().json()["model"] == "g1@0001"
        until(lambda: set(server.adapters) == VERSION_3)


def test_a_server_that_starts_anew_gets_the_version_again(store, pair):
    servers, urls = pair
    with in_sync(store, urls) as (url, _):
        until(lambda: all(set(s.adapters) == VERSION_2 for s in servers))
        servers[0].adapters.clear()
        assert all(ask(url).status_code == 200 for _ in range(4))
        until(lambda: set(servers[0].adapters) == VERSION_2)


def test_a_past_version_is_lent_for_a_while(store, pair):
    servers, urls = pair
    store.roll_back(3)
    with in_sync(store, urls) as (url, _):
        until(lambda: all(set(s.adapters) == VERSION_3 for s in servers))
        answer = ask(url, "assistant@2")
        assert answer.json()["model"] == "g1@0001"
        assert answer.headers["x-lcia-version"] == "2"
        assert sum("g1@0001" in s.adapters for s in servers) == 1
        until(lambda: all(set(s.adapters) == VERSION_3 for s in servers))


def test_the_base_model_is_asked_for_as_an_adapter_of_zeros(store, pair):
    servers, urls = pair
    with in_sync(store, urls[:1]) as (url, _):
        until(lambda: set(servers[0].adapters) == VERSION_2)
        assert ask(url, "base").json()["model"] == "base@zeros"
        zeros = load_file(store.root / "vllm" / "base@zeros" / "adapter_model.safetensors")
        assert zeros
        assert not any(tensor.any() for tensor in zeros.values())
        learned = load_file(store.root / "vllm" / "g1@0001" / "adapter_model.safetensors")
        assert learned.keys() == zeros.keys()
        assert all(tensor.any() for tensor in learned.values())


def test_a_server_that_takes_no_adapters_is_told_of_and_nothing_is_asked_of_it(store, caplog):
    server = Loading(takes_adapters=False)
    with running(server.app, OPEN) as upstream, in_sync(store, [upstream]) as (url, _):
        until(lambda: "takes no adapters at run time" in caplog.text)
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in caplog.text
        refused = ask(url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_upstream")
        assert "the gateway's log says which" in refused.text
        assert "lcia_upstreams_behind 1.0" in httpx.get(f"{url}/metrics").text
        assert server.asked == []
        time.sleep(0.3)
        assert len([r for r in caplog.records if "at run time" in r.message]) <= 3, "told once"


def test_a_folder_that_the_servers_do_not_see_is_said(store, pair, caplog):
    _, urls = pair
    with in_sync(store, urls[:1], sync_seen_as="/not/there") as (url, _):
        until(lambda: "--sync-seen-as" in caplog.text)
        assert "from /not/there/base@zeros" in caplog.text
        assert ask(url).status_code == 503


def test_another_assistants_adapter_of_the_same_name_never_answers(store, pair, caplog):
    servers, urls = pair
    servers[0].adapters["g1@0001"] = Path("/another/assistant/g1@0001")
    with in_sync(store, urls[:1]) as (url, _):
        until(lambda: "An assistant needs servers of its own" in caplog.text)
        assert ask(url).status_code == 503
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
def test_requests_of_other_apis_are_routed_by_what_they_say(store, pair, path, fields):
    _, urls = pair
    with in_sync(store, urls[:1]) as (url, _):
        answer = httpx.post(f"{url}{path}", json={"model": "assistant", **fields}, timeout=20)
        assert answer.json()["model"] == "g1@0001"
        empty = httpx.post(f"{url}{path}", json={"model": "assistant"}, timeout=20)
        assert empty.json()["error"]["code"] == "invalid_messages"


def test_settings_of_the_sync_want_the_sync(store):
    from lcia.cli.gateway import gateway

    with pytest.raises(ConfigError, match="belong to --sync"):
        gateway(["http://127.0.0.1:1"], store.root, sync_folder=store.root / "x")
