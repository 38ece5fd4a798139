"""The openai client through the gateway, before lcia servers and before one that misbehaves."""

import asyncio
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from lcia.errors import ConfigError
from lcia.serving.config import AccessConfig
from lcia.serving.gateway.app import Gateway, GatewayConfig, build_gateway
from lcia.serving.gateway.upstreams import Upstream, check_url
from lcia.serving.live import LiveStore
from serving_server import COLOUR, NUMBER, running, serving, unhurried

KEY, UPSTREAM_KEY = "the-gateways-own-key", "the-key-of-the-servers"
OPEN = AccessConfig(port=0)
ADAPTERS = {"g1": "g1@0001", "g2": "g2@0002"}


def user(text):
    return [{"role": "user", "content": text}]


@contextmanager
def gateway_to(store, *urls, **settings):
    config = GatewayConfig(**{"upstreams": urls, "access": OPEN, "check_s": 0.1, **settings})
    gateway = Gateway(LiveStore(store.root, served_here=False), config=config)
    with running(build_gateway(gateway), config.access) as url:
        yield url, gateway


@contextmanager
def connect(url, key="none"):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def servers(served_store):
    """Two lcia servers that want a key."""
    access = AccessConfig(port=0, api_keys=(UPSTREAM_KEY,))
    with ExitStack() as stack:
        yield [
            stack.enter_context(serving(served_store, access=access, max_new_tokens=300))
            for _ in range(2)
        ]


@pytest.fixture(scope="module")
def url(served_store, servers):
    """A gateway before both, which wants a key of its own."""
    access = AccessConfig(port=0, api_keys=(KEY,))
    urls = [url for url, _ in servers]
    with gateway_to(served_store, *urls, access=access, upstream_key=UPSTREAM_KEY) as (url, _):
        yield url


@pytest.fixture
def client(url):
    with connect(url, KEY) as client:
        yield client


def test_chat_streaming_and_listing_through_the_gateway(client, servers):
    assert [m.id for m in client.models.list()] == ["assistant", "g1", "g2", "base"]
    with connect(servers[0][0], UPSTREAM_KEY) as direct:
        for text, group in ((COLOUR, "g1"), (NUMBER, "g2")):
            asked = {"messages": user(text), "max_tokens": 30}
            expected = direct.chat.completions.create(model=group, **asked)
            raw = client.chat.completions.with_raw_response.create(model="assistant", **asked)
            answer = raw.parse()
            assert answer.choices[0].message.content == expected.choices[0].message.content
            assert answer.model == ADAPTERS[group], "what the server was asked for"
            assert raw.headers["x-lcia-group"] == group
            assert raw.headers["x-lcia-reason"] == "reached"
            assert raw.headers["x-lcia-version"] == "2"
            stream = client.chat.completions.create(model="assistant", stream=True, **asked)
            assert stream.response.headers["x-lcia-group"] == group
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
            assert len(pieces) >= 3, "the role, the text and the end"
            assert "".join(pieces) == expected.choices[0].message.content
        text = client.completions.create(model="base", prompt="abc", max_tokens=5)
        assert (
            text.choices[0].text
            == direct.completions.create(model="base", prompt="abc", max_tokens=5).choices[0].text
        )


def test_a_name_with_a_version_means_that_version_for_ever(client, servers):
    asked = {"messages": user(COLOUR), "max_tokens": 30}
    with connect(servers[0][0], UPSTREAM_KEY) as direct:
        for name, version in (("assistant@1", "1"), ("assistant@2", "2"), ("g1@1", "1")):
            for ask in (client, direct):
                assert ask.models.retrieve(name).id == name
                raw = ask.chat.completions.with_raw_response.create(model=name, **asked)
                assert (raw.headers["x-lcia-version"], raw.headers["x-lcia-group"]) == (
                    version,
                    "g1",
                )
            expected = direct.chat.completions.create(model=name, **asked)
            assert raw.parse().choices[0].message.content == expected.choices[0].message.content
    for name in ("assistant@99", "g1@99", "g2@1"):  # the second group came with version 2
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model=name, **asked)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


def test_a_stream_arrives_piece_by_piece(client):
    moments = []
    for _ in client.chat.completions.create(
        model="base", messages=user("go on"), max_tokens=300, stream=True
    ):
        moments.append(time.monotonic())
    assert moments[-1] - moments[0] > 0.1


def test_errors_of_the_server_are_passed_on(client, url):
    with pytest.raises(openai.BadRequestError, match="context length is 512") as refused:
        client.chat.completions.create(model="assistant", messages=user("x" * 600))
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="'logprobs' is not supported"):
        client.chat.completions.create(model="g1", messages=user("x"), logprobs=True)
    with pytest.raises(openai.NotFoundError, match="There are: assistant, base, g1, g2"):
        client.chat.completions.create(model="../g1", messages=user("x"))
    headers = {"Authorization": f"Bearer {KEY}"}
    for body in ({}, {"model": "assistant"}, {"messages": user("x")}, {"model": 1, "prompt": "x"}):
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 400
    assert httpx.post(f"{url}/v1/chat/completions", json={}).status_code == 401


def test_route_probes_and_metrics(url):
    headers = {"Authorization": f"Bearer {KEY}"}
    found = httpx.post(f"{url}/v1/route", json={"messages": user(COLOUR)}, headers=headers).json()
    assert found["group"] == "g1"
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready", "upstreams": 2}
    assert "lcia_upstreams_healthy 2.0" in httpx.get(f"{url}/metrics", headers=headers).text


def test_a_client_that_leaves_frees_the_servers_place(served_store, servers):
    (server, service), engine = servers[0], servers[0][1].answers.engine
    with (
        unhurried(service),
        gateway_to(served_store, server, upstream_key=UPSTREAM_KEY) as (url, gateway),
    ):
        with httpx.stream(
            "POST",
            f"{url}/v1/chat/completions",
            json={"model": "base", "messages": user("go on"), "max_tokens": 300, "stream": True},
        ) as answer:
            pieces = answer.iter_bytes()  # let go of, it would hang up
            next(pieces)
            assert engine.running == 1
            assert gateway.upstreams.all[0].running == 1
        wait_for(lambda: engine.running == 0)
        wait_for(lambda: gateway.upstreams.all[0].running == 0)
    wait_for(lambda: service.monitoring.cancelled._value.get() >= 1)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Odd:
    """A server like vLLM that can be told to misbehave."""

    def __init__(self, models):
        self.asked, self.behaviour = [], "well"
        self.app = FastAPI()
        self.app.state.end = lambda: None
        self.records = [
            {"id": m, "root": f"adapters/{ADAPTERS[m]}", "parent": models[0]}
            if m in ADAPTERS
            else {"id": m, "root": m, "parent": None}
            for m in models
        ]
        self.app.get("/v1/models")(lambda: {"data": self.records})
        self.app.post("/v1/chat/completions")(self.chat)

    async def chat(self, request: Request):
        body = await request.json()
        self.asked.append(body)
        if self.behaviour in ("break", "error event", "nothing"):
            return StreamingResponse(self.broken(), media_type="text/event-stream")
        if isinstance(self.behaviour, int):
            error = {"error": {"message": "busy", "code": "odd"}}
            return JSONResponse(error, self.behaviour, headers={"Retry-After": "7"})
        if self.behaviour == "silent":
            await asyncio.sleep(1)
        return {"model": body["model"], "choices": []}

    def exchange(self, name, adapter):
        """Serve another adapter under a name, from now on."""
        (record,) = (record for record in self.records if record["id"] == name)
        record["root"] = f"adapters/{adapter}"

    async def broken(self):
        if self.behaviour == "nothing":
            return
        if self.behaviour == "error event":
            yield b'data: {"error": {"message": "the engine died", "code": 500}}\n\n'
            yield b"data: [DONE]\n\n"
            return
        yield b'data: {"choices": []}\n\n'
        await asyncio.sleep(0.05)
        raise RuntimeError("died")


@pytest.fixture
def odd():
    server = Odd(["org/model", "g1", "g2"])
    with running(server.app, OPEN) as url:
        yield server, url


def post(url, **more):
    body = {"model": "assistant", "messages": user(COLOUR), **more}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)


def test_any_fields_reach_the_server_and_its_base_model_is_found(served_store, odd):
    server, upstream = odd
    with gateway_to(served_store, upstream) as (url, _):
        more = {"top_k": 5, "tools": [{"type": "function"}], "extra": {"a": [1]}}
        assert post(url, **more).json() == {"model": "g1", "choices": []}
        assert server.asked[-1] == {"model": "g1", "messages": user(COLOUR), **more}
        assert post(url, model="base").json()["model"] == "org/model"
    with gateway_to(served_store, upstream, base_model="other") as (url, _):
        refused = post(url, model="base")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_upstream")
        assert "No server behind this gateway has 'base'" in refused.text


def test_a_dead_server_is_left_out_and_taken_back(served_store, odd):
    _, upstream = odd
    port = free_port()
    with gateway_to(served_store, f"http://127.0.0.1:{port}", upstream) as (url, gateway):
        dead = gateway.upstreams.all[0]
        assert not dead.healthy
        assert all(post(url).status_code == 200 for _ in range(4))
        with running(Odd(["org/model", "g1"]).app, AccessConfig(port=port)):
            wait_for(lambda: dead.healthy)
        # Now it is believed well and is not: nothing was sent back, so another one is asked.
        assert all(post(url).status_code == 200 for _ in range(4))
        wait_for(lambda: not dead.healthy)


def test_only_an_answer_that_has_not_begun_is_asked_for_elsewhere(served_store, odd):
    server, upstream = odd
    other = Odd(["org/model", "g1", "g2"])
    with (
        running(other.app, OPEN) as second,
        gateway_to(served_store, upstream, second, timeout_s=0.3) as (url, _),
    ):
        server.behaviour = 503
        assert all(post(url).status_code == 200 for _ in range(4))
        assert server.asked, "it was asked, and another one after it"
        server.behaviour = other.behaviour = 429
        refused = post(url)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
        assert refused.json() == {"error": {"message": "busy", "code": "odd"}}
        for behaviour, status in (("silent", 504), ("break", 200)):
            server.behaviour = other.behaviour = behaviour
            before = len(server.asked) + len(other.asked)
            answer = post(url)
            assert answer.status_code == status
            assert len(server.asked) + len(other.asked) == before + 1
        assert '{"error":{"message":"The server behind this gateway broke off."' in answer.text


@pytest.fixture
def pair(served_store, odd):
    """Two servers, and the address of a gateway that looked at them once."""
    other = Odd(["org/model", "g1", "g2"])
    with (
        running(other.app, OPEN) as second,
        gateway_to(served_store, odd[1], second, check_s=60) as (url, _),
    ):
        yield odd[0], other, url


def test_an_adapter_exchanged_since_the_last_look_answers_nothing(pair):
    server, other, url = pair
    server.exchange("g1", "g1@0003")
    assert all(post(url).status_code == 200 for _ in range(4))
    assert len(server.asked) == 1, "it was found out by the first answer"
    assert len(other.asked) == 4
    other.exchange("g1", "g1@0003")
    refused = post(url)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_upstream")
    assert "has 'g1@0001', which version 2 wants" in refused.text
    server.exchange("g1", "g1@0001")
    assert post(url, model="base").status_code == 200, "the base model has no version"


@pytest.mark.parametrize("behaviour", ["error event", "nothing"])
def test_a_stream_that_fails_before_its_first_token_is_asked_for_elsewhere(behaviour, pair):
    server, other, url = pair
    server.behaviour = behaviour
    assert all(post(url, stream=True).json()["model"] == "g1" for _ in range(4))
    assert server.asked
    other.behaviour = behaviour
    told = post(url, stream=True)
    if behaviour == "error event":
        assert told.text.endswith('"the engine died", "code": 500}}\n\ndata: [DONE]\n\n')
    else:
        assert (told.status_code, told.json()["error"]["code"]) == (502, "upstream_unreachable")


def test_what_a_server_said_is_told_though_another_one_is_dead(served_store, odd):
    server, upstream = odd
    with ExitStack() as stack:
        port = free_port()
        with running(Odd(["org/model", "g1"]).app, AccessConfig(port=port)):
            settings = {"check_s": 60}
            urls = [upstream, f"http://127.0.0.1:{port}"]
            url, _ = stack.enter_context(gateway_to(served_store, *urls, **settings))
        server.behaviour = 429
        for _ in range(2):  # each is the first one asked once
            refused = post(url)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")


def test_without_any_server(served_store):
    with gateway_to(served_store, f"http://127.0.0.1:{free_port()}") as (url, _):
        assert httpx.get(f"{url}/readyz").status_code == 503
        assert httpx.get(f"{url}/healthz").status_code == 200
        refused = post(url)
        assert refused.status_code == 503
        assert "No server behind this gateway is well" in refused.text
        assert refused.headers["retry-after"] == "5"
        assert [m["id"] for m in httpx.get(f"{url}/v1/models").json()["data"]] == ["assistant"]


def test_the_least_busy_server_is_asked_first(served_store, odd):
    _, upstream = odd
    with (
        running(Odd(["org/model", "g1", "g2"]).app, OPEN) as second,
        gateway_to(served_store, upstream, second) as (_, gateway),
    ):
        first = {gateway.upstreams.serving("g1@0001")[0][0].url for _ in range(4)}
        assert first == {upstream, second}, "in turn"
        gateway.upstreams.all[0].answering["base"] = 3
        assert {gateway.upstreams.serving("g1@0001")[0][0].url for _ in range(4)} == {second}


def test_addresses_are_checked():
    assert check_url("http://gpu1:8000") == "http://gpu1:8000"
    assert Upstream("http://a").name_of(None, base_model=None) is None
    for url in ("gpu1:8000", "ftp://gpu1", "http://", "http://a:b"):
        with pytest.raises(ConfigError, match="--upstream"):
            check_url(url)


def test_many_clients_at_once(client):
    answered = []

    def ask(i):
        text, group = ((COLOUR, "g1"), (NUMBER, "g2"))[i % 2]
        raw = client.chat.completions.with_raw_response.create(
            model="assistant", messages=user(text), max_tokens=5
        )
        answered.append(raw.headers["x-lcia-group"] == group)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answered == [True] * 24
