"""The official openai client, unmodified, against a server on a real socket."""

import re
import time

import httpx
import openai
import pytest

from lcia.data import Message
from lcia.learner import ContinualLearner
from serving_server import COLOUR, NUMBER, unhurried


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def expected(served_store):
    """What lcia itself answers, outside the server."""
    learner = ContinualLearner(served_store)
    adapters = served_store.current.adapters
    return {
        (text, group): learner.host.generate(
            [(Message(role="user", content=text),)],
            [adapters[group] if group else None],
            max_new_tokens=16,
        )[0]
        for text in (COLOUR, NUMBER)
        for group in (None, "g1", "g2")
    }


def test_chat_is_routed_by_content(client, expected):
    for text, group, other in ((COLOUR, "g1", "g2"), (NUMBER, "g2", "g1")):
        raw = client.chat.completions.with_raw_response.create(
            model="assistant", messages=user(text), max_tokens=16
        )
        answer = raw.parse()
        assert answer.choices[0].message.content.strip() == expected[text, group]
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert answer.object == "chat.completion"
        assert answer.model == "assistant"
        usage = answer.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert 1 <= usage.completion_tokens <= 16
        told = answer.lcia
        assert (told["group"], told["reason"], told["runner_up"]) == (group, "reached", other)
        assert told["similarity"] == pytest.approx(1.0)
        assert told["version"] == 2
        headers = raw.headers
        assert headers["x-lcia-group"] == group
        assert headers["x-lcia-reason"] == "reached"
        assert headers["x-lcia-runner-up"] == other
        assert headers["x-lcia-version"] == "2"
        assert float(headers["x-lcia-similarity"]) == pytest.approx(1.0)


def test_a_group_or_the_base_model_can_be_asked_for(client, expected):
    for model, group in (("g1", "g1"), ("g2", "g2"), ("base", None)):
        answer = client.chat.completions.create(
            model=model, messages=user(COLOUR), max_completion_tokens=16
        )
        assert answer.choices[0].message.content.strip() == expected[COLOUR, group]
        assert (answer.lcia["group"], answer.lcia["reason"]) == (group, "requested")


def test_a_stream_adds_up_to_the_whole_answer(client):
    whole = client.chat.completions.create(model="g1", messages=user(COLOUR), max_tokens=40)
    stream = client.chat.completions.create(
        model="g1",
        messages=user(COLOUR),
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].lcia["group"] == "g1"
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert len(chunks) > 5
    assert [c.choices[0].finish_reason for c in chunks[-2:-1]] == [whole.choices[0].finish_reason]
    assert not chunks[-1].choices and chunks[-1].usage == whole.usage
    assert {c.id for c in chunks} == {chunks[0].id}
    assert stream.response.headers["x-lcia-group"] == "g1"


def test_completions_continue_text(client, server):
    whole = client.completions.create(model="base", prompt="abc", max_tokens=12)
    assert whole.object == "text_completion"
    pieces = client.completions.create(model="base", prompt="abc", max_tokens=12, stream=True)
    assert "".join(p.choices[0].text for p in pieces) == whole.choices[0].text
    routed = client.completions.create(model="assistant", prompt=NUMBER, max_tokens=2)
    assert routed.lcia["group"] == "g2"


def test_models_are_listed(client):
    assert [m.id for m in client.models.list()] == ["assistant", "g1", "g2", "base"]
    assert client.models.retrieve("g1").id == "g1"
    with pytest.raises(openai.NotFoundError, match="'g9' does not exist"):
        client.models.retrieve("g9")


def test_sampling_follows_the_seed_and_stop_strings_end(client):
    def ask(**settings):
        answer = client.chat.completions.create(
            model="g1", messages=user("tell me"), max_tokens=24, **settings
        )
        return answer.choices[0].message.content, answer.choices[0].finish_reason

    drawn = [ask(temperature=1.5, top_p=0.9, seed=seed)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = ask()[0]
    assert ask(temperature=0)[0] == greedy
    stopped, reason = ask(stop=[greedy[4:6]])
    assert (stopped, reason) == (greedy[: greedy.index(greedy[4:6])], "stop")


def test_a_follow_up_stays_with_its_conversation(client):
    turns = [*user(NUMBER), {"role": "assistant", "content": "2"}, *user("and this: one 3")]
    answer = client.chat.completions.create(model="assistant", messages=turns, max_tokens=4)
    assert (answer.lcia["group"], answer.lcia["turns_back"]) == ("g2", 1)
    alone = client.chat.completions.create(
        model="assistant", messages=user("and this: one 3"), max_tokens=4
    )
    assert alone.lcia["reason"] == "below_nearest"


def test_text_parts_are_lines(client):
    parts = [{"type": "text", "text": t} for t in NUMBER.split("\n")]
    answer = client.chat.completions.create(
        model="assistant", messages=[{"role": "user", "content": parts}], max_tokens=4
    )
    assert answer.lcia["group"] == "g2"
    assert answer.lcia["similarity"] == pytest.approx(1.0)


def test_route_explains_without_generating(url):
    found = httpx.post(f"{url}/v1/route", json={"messages": user(COLOUR)}).json()
    assert (found["group"], found["matched"]) == ("g1", "Say the letter of the colour.")
    assert found["instruction"] == "Say the letter of the colour."
    assert list(found["similarities"]) == ["g1", "g2"]
    assert set(found["terms"]) == {"say", "letter", "colour"}


@pytest.mark.parametrize(("asked", "given"), [(400, 300), (5000, 300), (10**12, 300), (7, 7)])
def test_an_answer_is_as_long_as_was_asked_for_and_fits(url, asked, given):
    body = {"model": "g1", "messages": user("hello"), "max_tokens": asked}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["usage"]["completion_tokens"] == given
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"logprobs": True}, "logprobs", "'logprobs' is not supported"),
        ({"n": 2}, "n", "'n' is not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "'tools' is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": ["a"] * 5}, "stop", "at most 4 items"),
        ({"seed": "x"}, "seed", "valid integer"),
        ({"temprature": 1}, "temprature", "Nearest: temperature"),
        ({"messages": []}, "messages", "is empty; expected at least 1"),
        ({"messages": "hello"}, "messages", "expected a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'system'"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "no turn of the user"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content",
            "expected a text or a list",
        ),
        ({"messages": [7]}, "messages[0]", "expected an object"),
        ({"messages": user([{"type": "file"}])}, "messages[0].content[0]", "type is 'file'"),
        ({"messages": user([{"text": "x"}])}, "messages[0].content[0]", "has no type"),
        ({"stop": [""]}, "stop[0]", "is empty; expected at least 1"),
        ({"messages": user("x" * 600)}, "messages", "context length is 512"),
        ({"messages": user("x" * 100_000)}, "messages", "more than"),
        ({"model": None}, "model", "is missing"),
    ],
)
def test_what_cannot_be_done_is_said_clearly(url, change, param, message):
    body = {"model": "g1", "messages": user("hello"), **change}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]
    for word in ("validation", "tuple", "dictionary", "discriminator", "instance"):
        assert word not in error["message"], "a word of Python"


def test_a_text_whose_beginning_is_too_long_is_neither_routed_nor_tokenised(server, monkeypatch):
    url, service = server
    # As with a tokenizer that has a very long token: counting characters tells nothing.
    monkeypatch.setattr(service, "_longest_token", 1 << 20)
    read = []
    for chat in (service._formats.get() for _ in range(service.config.limits.preparing)):
        monkeypatch.setattr(chat.encoder, "encode", noting(read, chat.encoder.encode))
        service._formats.put(chat)
    text = "word " * 20_000
    for path, asked in (
        ("chat/completions", {"messages": user(text)}),
        ("chat/completions", {"messages": [{"role": "system", "content": text}, *user("x")]}),
        ("completions", {"prompt": text}),
    ):
        routed = service.monitoring.routing_seconds._sum.get()
        answer = httpx.post(f"{url}/v1/{path}", json={"model": "assistant", **asked})
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert answer.json()["error"]["param"] in asked
        assert "the prompt has more than" in answer.text
        assert service.monitoring.routing_seconds._sum.get() == routed
    assert max(read) < 10_000, "of 100,000 characters"
    spaced = {"model": "base", "messages": user(" " * 9_000 + "hi"), "max_tokens": 1}
    told = httpx.post(f"{url}/v1/chat/completions", json=spaced).json()["error"]["message"]
    assert "more than" not in told, "templates may leave out the space around a text"


def noting(lengths, encode):
    def noted(text):
        lengths.append(len(text))
        return encode(text)

    return noted


def test_ignored_fields_and_neutral_values_are_accepted(client):
    answer = client.chat.completions.create(
        model="g1",
        messages=user("hello"),
        max_tokens=2,
        n=1,
        logprobs=False,
        presence_penalty=0,
        user="me",
        metadata={"a": "b"},
        response_format={"type": "text"},
    )
    assert answer.usage.completion_tokens == 2


def test_the_clients_own_errors_are_raised(client):
    with pytest.raises(openai.NotFoundError, match="There are: assistant, base, g1, g2") as missing:
        client.chat.completions.create(model="gpt-4o", messages=user("hello"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="context length is 512") as long:
        client.chat.completions.create(model="g1", messages=user("x" * 600))
    assert long.value.code == "context_length_exceeded"


def test_unknown_paths_and_methods(url):
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)):
        answer = httpx.request(method, f"{url}{path}")
        assert answer.status_code == status
        assert path in answer.json()["error"]["message"]


def test_probes_and_metrics(url, client):
    for text in (COLOUR, NUMBER):
        client.chat.completions.create(model="assistant", messages=user(text), max_tokens=3)
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready", "version": 2}
    page = httpx.get(f"{url}/metrics").text
    for line in (
        'lcia_requests_total{path="/v1/chat/completions",status="200"}',
        'lcia_routed_total{group="g1",reason="reached"}',
        'lcia_tokens_total{kind="answer"}',
        "lcia_routing_seconds_count",
        "lcia_first_token_seconds_count",
        "lcia_adapters_loaded 2.0",
        "lcia_store_version 2.0",
        "lcia_running 0.0",
    ):
        assert line in page


def test_only_answers_that_are_left_count_as_cancelled(server, client):
    url, service = server

    def cancelled():
        page = httpx.get(f"{url}/metrics").text
        return float(re.search(r"^lcia_cancelled_total (\S+)$", page, re.MULTILINE).group(1))

    before = cancelled()
    asked = {"model": "assistant", "messages": user(COLOUR), "stream": True}
    with client.chat.completions.create(**asked, max_tokens=4) as stream:
        for _ in stream:
            pass
    assert cancelled() == before
    with unhurried(service):
        with client.chat.completions.create(**asked, max_tokens=300) as stream:
            next(iter(stream))
        end = time.monotonic() + 60
        while cancelled() == before and time.monotonic() < end:
            time.sleep(0.05)
    assert cancelled() == before + 1
