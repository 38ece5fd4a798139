"""Fine-tuning jobs of a server and a worker as processes of their own, killed at any moment."""

import os
import random
import signal
import subprocess
import time

import openai
import pytest

from lcia.learner import Store
from lcia.live.data_files import DataFiles
from lcia.live.database import Database
from lcia.live.jobs import Jobs
from lcia.live.orders import order
from live_server import SHADES, data, server, start, wait_for
from serving_server import COLOUR, make_store


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model):
    return make_store(tmp_path_factory.mktemp("made") / "assistant", tiny_model)


@pytest.fixture
def store(made, tmp_path):
    import shutil

    shutil.copytree(made.root, tmp_path / "assistant")
    return Store.open(tmp_path / "assistant")


def test_an_openai_client_uploads_learns_and_talks_to_the_pinned_model(store):
    with server(store.root, "--learn") as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        before = client.chat.completions.create(
            model="assistant@2", messages=[{"role": "user", "content": COLOUR}], max_tokens=4
        )
        file = client.files.create(file=("shades.jsonl", data()), purpose="fine-tune")
        assert (file.filename, file.purpose, file.status) == (
            "shades.jsonl",
            "fine-tune",
            "processed",
        )
        assert client.files.content(file.id).content == data()
        assert [f.id for f in client.files.list()] == [file.id]
        job = client.fine_tuning.jobs.create(
            model="assistant",
            training_file=file.id,
            suffix="shades",
            seed=3,
            metadata={"who": "test"},
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 8}},
            },
        )
        assert job.status in ("queued", "running")
        ended = wait_for(client, job.id)
        assert ended.fine_tuned_model == "assistant@3"
        assert ended.trained_tokens > 0
        assert ended.seed == 3
        assert ended.metadata == {"who": "test"}
        assert ended.hyperparameters.n_epochs == 3
        assert client.files.content(ended.result_files[0]).text.startswith("step,train_loss\n1,")
        events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
        assert events[0].message == "The job has successfully completed"
        steps = [e.data["step"] for e in events if e.type == "metrics"]
        assert steps == list(range(len(steps), 0, -1)) != []
        assert [j.id for j in client.fine_tuning.jobs.list()] == [job.id]
        asked = {"messages": [{"role": "user", "content": COLOUR}], "max_tokens": 4}
        pinned = client.chat.completions.create(model="assistant@3", **asked)
        assert pinned.system_fingerprint == "lcia-version-3"
        assert client.chat.completions.create(model="g1@2", **asked).model == "g1@2"
        old = client.chat.completions.create(model="assistant@2", **asked)
        assert old.choices[0].message.content == before.choices[0].message.content
        assert old.system_fingerprint == "lcia-version-2"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="assistant@99", **asked)
        client.files.delete(file.id)
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
    assert Store.open(store.root).verify() == []
    assert list(Store.open(store.root).current.manifest["tasks"])[-1] == "shades"
    assert list(store.root.glob("assistant.db*"))


def queue_of(root, count):
    """Queue jobs that each teach some words; return them."""
    store, database = Store.open(root), Database(root)
    jobs, files = Jobs(database), DataFiles(database)
    made = []
    for k in range(count):
        words = {f"{word}{k}": letter for word, letter in SHADES.items()}
        file = files.add(f"t{k}.jsonl", data(words, name=f"t{k}"))
        fields = order(store, task=f"t{k}", hyperparameters={"n_epochs": 12})
        made.append(jobs.create(**fields, training_file=file["id"])["id"])
    return jobs, made


def contents(root):
    current = Store.open(root).current
    return list(current.manifest["tasks"]), {
        group: (folder / "adapter_model.safetensors").read_bytes()
        for group, (_, folder) in current.adapters.items()
    }


def test_kill_dash_nine_of_the_worker_at_random_moments_ends_every_job_once(store, tmp_path):
    import shutil

    straight = tmp_path / "straight"
    shutil.copytree(store.root, straight)
    queue_of(straight, 2)
    calm = start("worker", straight, "--once")
    jobs, made = queue_of(store.root, 2)
    dice, kills = random.Random(21), 0
    while True:
        steps = sum(job["step"] for job in map(jobs.get, made))
        process = start("worker", store.root, "--once", stderr=subprocess.DEVNULL)
        if kills == 5:
            break
        deadline = time.monotonic() + 120
        while sum(job["step"] for job in map(jobs.get, made)) == steps:
            if process.poll() is not None:
                break
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.6))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.wait(timeout=240) == 0
    assert kills >= 2
    assert calm.wait(timeout=240) == 0
    for job in made:
        found = jobs.get(job)
        assert found["status"] == "succeeded"
        told = [event["message"] for event in jobs.events(job, after=None, limit=1000)[0]]
        assert told.count("The job has successfully completed") == 1
        steps = [message for message in told if message.startswith("Step ")]
        assert len(steps) == len(set(steps))
    assert contents(store.root) == contents(straight)
