"""Fine-tuning jobs of a server and a worker as processes of their own, killed at any moment."""

import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import openai
import psutil
import pytest
import sqlalchemy
import typer.main
import yaml

from lcia.cli.main import app
from lcia.errors import DataError
from lcia.learner import ContinualLearner, Store, split_group
from lcia.live.data_files import DataFiles
from lcia.live.database import Database
from lcia.live.jobs import Jobs
from lcia.live.orders import order
from lcia.live.worker import URL
from lcia.store import audit
from serving_server import (
    COLOUR,
    SHADES,
    data,
    make_store,
    make_versions,
    postgres,
    postgres_programs,
    server,
    start,
    wait_for,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model):
    return make_store(tmp_path_factory.mktemp("made") / "assistant", tiny_model)


@pytest.fixture
def store(made, tmp_path):
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


def queue_of(root, count, *, url=None, epochs=12):
    """Queue jobs that each teach some words; return them."""
    store, database = Store.open(root), Database(root, url)
    jobs, files = Jobs(database), DataFiles(database)
    made = []
    for k in range(count):
        words = {f"{word}{k}": letter for word, letter in SHADES.items()}
        file = files.add(f"t{k}.jsonl", data(words, name=f"t{k}"))
        fields = order(store, task=f"t{k}", hyperparameters={"n_epochs": epochs})
        made.append(jobs.create(**fields, training_file=file["id"])["id"])
    return jobs, made


def contents(root):
    """All that an assistant knows: tasks, groups, scores, and every adapter to the bit."""
    current = Store.open(root).current
    adapters = {
        f"{group}/{name}": (folder / name).read_bytes()
        for group, (_, folder) in current.adapters.items()
        for name in ("adapter_model.safetensors", "memory.jsonl")
    }
    files = [current.path / name for name in ("codebook.json", "matrix.json", "predictions.jsonl")]
    known = {path.name: path.read_bytes() for path in files}
    return Store.open(root).numbers(), list(current.manifest["tasks"]), adapters, known


def check_ended_once(root, jobs, made):
    """Every job succeeded once, told no step twice, and the audit log knows all of it."""
    for job in made:
        found = jobs.get(job)
        assert found["status"] == "succeeded", found
        told = [event["message"] for event in jobs.events(job, after=None, limit=1000)[0]]
        assert told.count("The job has successfully completed") == 1
        steps = [message for message in told if message.startswith("Step ")]
        assert len(steps) == len(set(steps))
    assert Store.open(root).verify() == []
    log = audit.entries(root)
    for what, key in (("job succeeded", "job"), ("released", "version")):
        named = [entry[key] for entry in log if entry["what"] == what]
        assert len(named) == len(set(named)), named
    assert {e["job"] for e in log if e["what"] == "job succeeded"} >= set(made)


def straight_of(root, folder, count):
    """An assistant that learned the same jobs undisturbed."""
    shutil.copytree(root, folder)
    queue_of(folder, count)
    assert start("worker", folder, "--once").wait(timeout=600) == 0
    return contents(folder)


def kill_at_random(root, jobs, made, *, url, kills, dice, deadline_s):
    """Kill server, worker or both until so many kills are done or all jobs have ended.

    Returns:
        How often each was killed.
    """
    options = ["--learn", *(["--database", url] if url else [])]
    done = {"worker": 0, "server": 0, "both": 0}
    deadline = time.monotonic() + deadline_s
    log = root.with_suffix(".log")
    with log.open("wb") as written:
        server = None
        while any(jobs.get(job)["finished_at"] is None for job in made):
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            if server is None or server.poll() is not None:
                arguments = ("--port", 0, "--max-context", 256, *options)
                server = start("serve", root, *arguments, stderr=written)
            if sum(done.values()) == kills:
                time.sleep(0.2)
                continue
            time.sleep(dice.uniform(0, 14))
            what = dice.choice(list(done))
            worker = worker_of(server)
            if what == "both":
                os.killpg(server.pid, signal.SIGKILL)
            elif what == "server":
                server.kill()
            elif worker is None:
                continue
            else:
                worker.kill()
            if what != "worker":
                server.wait()
            done[what] += 1
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    server.wait(timeout=60)
    return done


def worker_of(server):
    """The worker that a server started; None while it has none."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(server.pid).children()
        return next((c for c in children if "worker" in c.cmdline()), None)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    """The database's URL; None is SQLite in the assistant's folder."""
    if request.param == "sqlite":
        yield None
        return
    pytest.importorskip("psycopg", reason="needs pip install 'lcia[postgresql]'")
    if postgres_programs() is None:
        pytest.skip("needs apt-get install postgresql")
    with postgres() as found:
        yield found


@pytest.mark.slow
def test_server_and_worker_killed_together_and_alone_lose_no_job(store, tmp_path, url):
    straight = straight_of(store.root, tmp_path / "straight", 2)
    jobs, made = queue_of(store.root, 2, url=url)
    dice = random.Random(5)
    kill_at_random(store.root, jobs, made, url=url, kills=3, dice=dice, deadline_s=300)
    check_ended_once(store.root, jobs, made)
    assert contents(store.root) == straight


@pytest.mark.slow
def test_a_hundred_kills_lose_no_job(made, tmp_path, url):
    """LCIA_KILLS says how many."""
    wanted, done, seed = int(os.environ.get("LCIA_KILLS", "100")), Counter(), 0
    straight = straight_of(made.root, tmp_path / "straight", 5)
    while sum(done.values()) < wanted:
        seed += 1
        root = tmp_path / f"assistant{seed}"
        shutil.copytree(made.root, root)
        with own_database(url, seed) as own:
            jobs, queued = queue_of(root, 5, url=own)
            left = wanted - sum(done.values())
            done += kill_at_random(
                root,
                jobs,
                queued,
                url=own,
                kills=left,
                dice=random.Random(seed),
                deadline_s=3600,
            )
            check_ended_once(root, jobs, queued)
        assert contents(root) == straight
        with open(tmp_path.parent / "kills.txt", "a") as told:
            told.write(f"{'postgresql' if url else 'sqlite'} {dict(done)} in {seed} rounds\n")


@contextmanager
def own_database(url, number):
    """A fresh database beside the given one."""
    if url is None:
        yield None
        return
    name = f"round{number}"
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    yield url.replace("/postgres?", f"/{name}?")


def until(condition, *, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_running_job_is_paused_resumed_and_cancelled(store, tmp_path):
    straight = tmp_path / "straight"
    shutil.copytree(store.root, straight)
    queue_of(straight, 1, epochs=40)
    calm = start("worker", straight, "--once")
    jobs, (job, other) = queue_of(store.root, 2, epochs=40)
    worker = start("worker", store.root)
    try:
        until(lambda: jobs.get(job)["step"] > 2)
        assert jobs.pause(job)["status"] == "running"
        until(lambda: jobs.get(job)["status"] == "paused")
        reached = jobs.get(job)["step"]
        assert reached < jobs.get(job)["steps"]
        assert jobs.cancel(other)["status"] in ("running", "cancelled", "queued")
        until(lambda: jobs.get(other)["status"] == "cancelled")
        assert jobs.get(job)["step"] == reached
        assert jobs.resume(job)["status"] == "queued"
        until(lambda: jobs.get(job)["status"] == "succeeded")
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    assert calm.wait(timeout=240) == 0
    assert contents(store.root)[1:] == contents(straight)[1:]
    told = [event["message"] for event in jobs.events(job, after=None, limit=1000)[0]]
    assert "The job was paused" in told
    assert "The job was resumed" in told
    assert "t1" not in Store.open(store.root).current.manifest["tasks"]


def test_a_running_job_that_is_cancelled_leaves_nothing(store):
    before = contents(store.root)
    jobs, (job,) = queue_of(store.root, 1, epochs=200)
    worker = start("worker", store.root)
    try:
        until(lambda: jobs.get(job)["step"] > 2)
        assert jobs.cancel(job)["status"] == "running"
        until(lambda: jobs.get(job)["status"] == "cancelled")
        with pytest.raises(DataError, match="is cancelled and cannot be resumed"):
            jobs.resume(job)
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    assert contents(store.root) == before
    assert not any((store.root / "runs").iterdir())


def test_a_server_tries_in_idle_time_whether_groups_can_be_joined(tmp_path, tiny_model):
    store = make_versions(tmp_path / "assistant", tiny_model)
    split_group(ContinualLearner(store), "g1", ["shades"])
    with server(store.root, "--learn", "--consolidate-after", "0.5"):
        log = store.root.with_suffix(".log")
        until(lambda: "groups g1 and g3 stay: no validation samples of colours" in log.read_text())


def test_kill_dash_nine_of_the_worker_at_random_moments_ends_every_job_once(store, tmp_path):
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
    check_ended_once(store.root, jobs, made)
    assert contents(store.root) == contents(straight)


def test_the_examples_of_a_worker_elsewhere_are_what_shell_yaml_and_lcia_read():
    examples = Path(__file__).parents[2] / "examples"
    subprocess.run(["bash", "-n", examples / "worker.sbatch"], check=True)
    line = (examples / "worker.sbatch").read_text().splitlines()[-1]
    assert shlex.split(line)[:3] == ["srun", "lcia", "worker"]
    (deployment,) = yaml.safe_load_all((examples / "worker.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["env"][0]["name"] == URL
    assert {v["name"] for v in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    worker = typer.main.get_command(app).commands["worker"]
    for words in (["folder", "--once"], container["command"][2:]):
        worker.make_context("worker", words)
