"""A new version while answers stream, a full queue, and a server that is told to stop."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from conftest import make_task
from lcia.learner import ContinualLearner, Store
from lcia.serving.engine.limits import EngineLimits
from serving_server import COLOUR, NUMBER, serving

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
