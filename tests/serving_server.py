"""A server on a real socket, in a thread, and a small assistant to serve."""

import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import make_task
from lcia.config import AssistantConfig
from lcia.learner import ContinualLearner, Store, load_host
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
