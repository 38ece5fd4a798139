"""A server that also learns: further endpoints, a receipt of every answer, and a worker."""

import asyncio
import logging
import math
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from lcia.live.api import add_files, add_jobs
from lcia.live.data_files import DataFiles
from lcia.live.database import Database, DatabaseError
from lcia.live.feedback.endpoints import add_feedback, add_inbox
from lcia.live.feedback.teaching import Policy
from lcia.live.inbox import Receipts
from lcia.live.releases.canary import Answered, Canaries, CanaryConfig
from lcia.live.releases.listing import Releases
from lcia.live.releases.serving import Trial, add_releases
from lcia.live.worker import working
from lcia.serving.engine.job import Delta
from lcia.serving.http.app import build_app
from lcia.serving.http.server import run
from lcia.serving.http.service import Prepared, Service
from lcia.serving.live import BASE
from lcia.store.audit import acting_key

logger = logging.getLogger(__name__)

LOOK_S = 600.0
"""Seconds between two looks for texts that have been kept for long enough."""

Given = tuple[str, Prepared, str, Delta]
"""The id of an answer, what it answers, its text and its last piece of news."""


class Recorder:
    """Writes receipts before an answer's last word is sent, on a thread.

    An answer whose receipt cannot be written is given all the same; the log says so.

    Args:
        receipts: where they go.
        texts: whether prompts and answers are kept, too.
        trial: counts answers while a new version is tried; None: none is.
        keep_days: how long texts are kept; None: until they are forgotten.
    """

    def __init__(
        self,
        receipts: Receipts,
        *,
        texts: bool,
        trial: Trial | None = None,
        keep_days: float | None = None,
    ) -> None:
        self._receipts = receipts
        self._texts = texts
        self._trial = trial
        self._keep_s = None if keep_days is None else keep_days * 86_400
        self._looked = -math.inf

    async def __call__(self, given: Sequence[Given]) -> None:
        """Keep the receipts of answers."""
        rows = [self._row(*one) for one in given]
        try:
            await asyncio.to_thread(self._keep, rows)
        except DatabaseError as error:
            logger.error("no receipt of %s: %s", given[0][0], error)
        await self._count(
            [
                Answered(
                    id=answer,
                    version=prepared.choice.version,
                    text=text,
                    finish_reason=last.finish_reason,
                )
                for answer, prepared, text, last in given
                if _follows(prepared)
            ]
        )

    async def failed(self, prepared: Prepared) -> None:
        """Count an answer that failed."""
        if _follows(prepared):
            one = Answered(id=uuid.uuid4().hex, version=prepared.choice.version, text=None)
            await self._count([one])

    async def _count(self, answered: Sequence[Answered]) -> None:
        if self._trial is not None and answered:
            await asyncio.to_thread(self._trial.count, answered)

    def _keep(self, rows: Sequence[dict[str, Any]]) -> None:
        self._receipts.keep(rows)
        if self._keep_s is not None and time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            self._receipts.drop_texts(older_than_s=self._keep_s)

    def _row(self, answer: str, prepared: Prepared, text: str, last: Delta) -> dict[str, Any]:
        choice, asked = prepared.choice, prepared.asked
        decision, sampling = choice.decision, prepared.prompt.sampling
        turns = [
            {"role": {"developer": "system"}.get(m.role, m.role), "content": m.text}
            for m in asked.conversation
        ]
        seen = any(m.image_urls for m in asked.conversation)
        return {
            "id": answer,
            "model": asked.model,
            "version": choice.version,
            "group": choice.group,
            "adapter": choice.adapter[0] if choice.adapter else None,
            "reason": choice.reason,
            "similarity": decision.similarity if decision else None,
            "sampling": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": sampling.seed,
                "max_tokens": asked.answer_tokens,
            },
            "prompt_tokens": len(prepared.prompt.ids),
            "answer_tokens": last.tokens,
            "finish_reason": last.finish_reason,
            "prompt": turns if self._texts and not seen else None,
            "answer": text if self._texts else None,
            "key": acting_key(),
        }


def _follows(prepared: Prepared) -> bool:
    """Tell whether the client left the version to the server."""
    return prepared.asked.model != BASE and "@" not in prepared.asked.model


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
        consolidate_after: seconds without a job or an answer after which it tries to join groups;
            None: never.
        database: its URL; None: SQLite beside the store.
        canary: how new versions are tried; None: they answer everything at once.
    """

    learn: bool
    keep_prompts: bool = False
    keep_days: float | None = None
    worker: bool = True
    learn_when: str = "manual"
    accept_new: bool = False
    consolidate_after: float | None = None
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
    if config.consolidate_after is not None:
        options += ["--consolidate-after", str(config.consolidate_after)]
    child = working(root, url=database.url, options=options)
    with child if config.learn and config.worker else nullcontext():
        run(app, service.config.access, listening)
    database.close()
