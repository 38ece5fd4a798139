"""Servers under test: an assistant served in this process, one that learns, and a database."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from conftest import make_task
from lcia.config import AssistantConfig
from lcia.learner import ContinualLearner, Store, load_host
from lcia.live.jobs import ENDED
from lcia.serving.config import AccessConfig, ServeConfig
from lcia.serving.http.app import build_app
from lcia.serving.http.server import listen, make_server
from lcia.serving.http.service import Service
from lcia.serving.live import LiveStore

COLOUR = "Say the letter of the colour.\n\ngreen 7"
NUMBER = "Write this number as a digit.\n\ntwo 7"


TRAINING = {"max_steps": 2, "learning_rate": 3e-3, "save_steps": 100}


def make_store(
    root: Path, model: Path, *, training: dict[str, Any] = TRAINING, **more: Any
) -> Store:
    """An assistant with two groups: g1 for COLOUR, g2 for NUMBER; its gate tests nothing."""
    settings: dict[str, Any] = {"training": training, "gate": {"tests": "none"}, **more}
    config = AssistantConfig(model=str(model), dtype="float32", **settings)
    learner = ContinualLearner.create(root, config)
    learner.learn(make_task("colours", COLOUR.partition("\n")[0], {"red": "r", "green": "g"}))
    learner.learn(make_task("numbers", NUMBER.partition("\n")[0], {"one": "1", "two": "2"}))
    return learner.store


def make_versions(root: Path, model: Path, *, training: dict[str, Any] = TRAINING) -> Store:
    """The same after a third task, which teaches g1 more: three versions, two of them of g1."""
    store = make_store(root, model, training=training)
    learner = ContinualLearner(store)
    instruction = COLOUR.partition("\n")[0]
    learner.learn(make_task("shades", instruction, {"blue": "b", "white": "w"}))
    return store


def make_service(store: Store, **settings) -> Service:
    config = ServeConfig(**{"access": AccessConfig(port=0), "poll_s": 0.05, **settings})
    return Service(load_host(store.config), LiveStore(store.root), config=config)


_servers: dict[str, Any] = {}


def stop(url: str) -> None:
    """Do what SIGTERM does to a server."""
    _servers[url].should_exit = True


@contextmanager
def running(app, access: AccessConfig):
    """Serve an application; yield its address."""
    listening = listen(access)
    server = make_server(app, access)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    _servers[url] = server
    try:
        yield url
    finally:
        del _servers[url]
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


@contextmanager
def serving(store: Store, **settings):
    """Serve an assistant; yield its address and the service."""
    service = make_service(store, **settings)
    with running(build_app(service), service.config.access) as url:
        yield url, service


@contextmanager
def unhurried(service: Service, seconds: float = 0.02):
    """Let every step take its time: an answer of 300 tokens then outlasts any delay of a test."""
    batch = service.answers.engine.batch
    forward = batch.forward

    def slow(*args, **kwargs):
        time.sleep(seconds)
        return forward(*args, **kwargs)

    batch.forward = slow
    try:
        yield
    finally:
        del batch.forward


SHADES = {"blue": "b", "white": "w"}


def lines_of(task) -> bytes:
    records = [
        {
            "messages": [
                {"role": "user", "content": sample.prompt},
                {"role": "assistant", "content": sample.answers[0]},
            ]
        }
        for sample in task.train
    ]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def data(words=SHADES, *, name="shades", instruction="Say the letter of the colour.") -> bytes:
    return lines_of(make_task(name, instruction, words, train=20))


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "lcia", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        **options,
    )


@contextmanager
def server(root, *options):
    """Serve an assistant in a process of its own; yield its address and the process."""
    log = root.with_suffix(".log")
    with log.open("wb") as written:
        process = start("serve", root, "--port", 0, "--max-context", 256, *options, stderr=written)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"listening on (http://\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(found[1] + "/readyz").status_code == 200:
                    break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield found[1], process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def wait_for(client, job, *, status="succeeded", seconds=120):
    deadline = time.monotonic() + seconds
    while (found := client.fine_tuning.jobs.retrieve(job)).status not in ENDED:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert found.status == status, found
    return found


def postgres_programs():
    """Folder of PostgreSQL's programs; None where it is not installed."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return Path(found).resolve().parent if found else next(iter(folders), None)


@contextmanager
def postgres():
    """A PostgreSQL server of its own, on a socket in a folder that is gone afterwards; its URL."""
    programs, folder = postgres_programs(), Path(tempfile.mkdtemp(prefix="lcia-pg-"))
    user = []
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(folder, "postgres")
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]

    def run(program, *arguments):
        command = [*user, programs / program, "-D", folder / "data", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)

    try:
        run("initdb", "--auth=trust", "--username=lcia", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -F"
        run("pg_ctl", "-w", "-l", folder / "log", "-o", options, "start")
        yield f"postgresql+psycopg://lcia@/postgres?host={folder}"
    finally:
        with suppress(subprocess.CalledProcessError):
            run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
