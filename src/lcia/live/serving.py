"""A server that also learns: further endpoints, a receipt of every answer, and a worker."""

import socket
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from lcia.live.api import add_files, add_jobs
from lcia.live.data_files import DataFiles
from lcia.live.database import Database
from lcia.live.feedback.endpoints import add_feedback, add_inbox
from lcia.live.feedback.teaching import Policy
from lcia.live.inbox import Receipts
from lcia.live.recording import Recorder
from lcia.live.releases.canary import Canaries, CanaryConfig
from lcia.live.releases.listing import Releases
from lcia.live.releases.serving import Trial, add_releases
from lcia.live.worker import working
from lcia.serving.http.app import build_app
from lcia.serving.http.server import run
from lcia.serving.http.service import Service


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """What a server offers beyond answers.

    Attributes:
        learn: whether files and jobs are taken; receipts and feedback always are.
        keep_prompts: whether receipts hold prompts and answers.
        keep_days: for how long; None: until they are forgotten.
        worker: whether a worker runs as a child of the server.
        learn_when: when it learns accepted corrections by itself.
        accept_new: whether it accepts those, but for what a person should look at.
        database: its URL; None: SQLite beside the store.
        canary: how new versions are tried; None: they answer everything at once.
    """

    learn: bool
    keep_prompts: bool = False
    keep_days: float | None = None
    worker: bool = True
    learn_when: str = "manual"
    accept_new: bool = False
    database: str | None = None
    canary: CanaryConfig | None = None


def build_live_app(service: Service, config: LiveConfig, database: Database) -> FastAPI:
    """Return the ASGI application of an assistant that takes feedback, and jobs if it learns."""
    canaries = Canaries(database, config.canary)
    trial = Trial(service.live, canaries) if config.canary else None
    kept: dict[str, Any] = {"texts": config.keep_prompts, "keep_days": config.keep_days}
    recorder = Recorder(Receipts(database), **kept, trial=trial)
    service.keep_receipts, service.count_failure = recorder, recorder.failed
    access = service.config.access

    def add(app: FastAPI) -> None:
        add_feedback(app, access, database)
        add_inbox(app, access, service.live.store, database)
        if config.learn:
            add_files(app, access, DataFiles(database))
            add_jobs(app, access, service.live.store, database)
            add_releases(app, access, Releases(service.live.store, canaries), service.live)

    return build_app(service, add)


def run_live(service: Service, config: LiveConfig, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; the worker ends with the server.

    Raises:
        ConfigError: the database's URL cannot be used.
        DatabaseError: the database cannot be reached.
    """
    root = service.live.store.root
    database = Database(root, config.database)
    app = build_live_app(service, config, database)
    Policy.parse(config.learn_when)
    options = ["--learn-when", config.learn_when, *(["--accept-new"] * config.accept_new)]
    child = working(root, url=database.url, options=options)
    with child if config.learn and config.worker else nullcontext():
        run(app, service.config.access, listening)
    database.close()
