"""The engine, for coroutines."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from lcia.models import AdapterHost
from lcia.serving.engine.engine import Engine
from lcia.serving.engine.job import CANCELLED, Delta, Job, Prompt
from lcia.serving.engine.limits import EngineLimits
from lcia.serving.engine.scheduler import News


class Answers:
    """Runs an engine and hands its news to whoever waits for them.

    Args:
        host: of the model.
        limits: what the engine may use.
    """

    def __init__(self, host: AdapterHost, *, limits: EngineLimits) -> None:
        self.engine = Engine(
            host.base,
            limits=limits,
            deliver=self._deliver,
            projector=host.projector,
            chat=host.chat,
        )

    def start(self) -> None:
        """Start the engine; its news arrive in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self.engine.start()

    async def stop(self) -> None:
        """Stop the engine; whoever still waits gets an error."""
        await asyncio.to_thread(self.engine.stop)

    def ask(self, **asked: Any) -> "Answer":
        """Queue a request.

        Args:
            **asked: of ``Job``.

        Raises:
            QueueFullError: too many wait.
            PromptError: its prompt is nothing that the model can read.
            ShuttingDownError: the engine was stopped.
        """
        news: asyncio.Queue[Delta] = asyncio.Queue()
        job = Job(listener=news.put_nowait, **asked)
        self.engine.submit(job)
        return Answer(self.engine, job, news)

    def _deliver(self, news: News) -> None:
        # One wake-up of the loop per step, however many answers are running.
        self._loop.call_soon_threadsafe(_call_listeners, news)


class Answer:
    """An answer on its way; when nobody holds on to it any more, it is given up."""

    def __init__(self, engine: Engine, job: Job, news: "asyncio.Queue[Delta]") -> None:
        self._engine = engine
        self._job = job
        self._news = news
        self._ended = False

    async def prepared(self) -> Prompt:
        """Wait until it is certain what will be answered, and return it.

        Raises:
            Exception: of preparing.
            GenerationTimeoutError: it took longer than the request allows.
        """
        if self._job.prepare is not None:
            await self._next()
        return self._job.asked

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yield the news; closed before the last one, the answer is given up.

        Raises:
            GenerationTimeoutError: the answer was not finished in time.
            LciaError: the adapter cannot be used, the device failed, or the engine stops.
        """
        try:
            while not self._ended:
                yield await self._next()
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Say that the answer is no longer wanted."""
        if not self._ended:
            self._ended = True
            self._engine.cancel(self._job)

    def __del__(self) -> None:
        self.give_up()

    async def _next(self) -> Delta:
        delta = await self._news.get()
        self._ended = delta.last
        if delta.error is not None:
            raise delta.error
        if delta.finish_reason == CANCELLED:
            raise asyncio.CancelledError
        return delta


def _call_listeners(news: News) -> None:
    for job, delta in news:
        job.listener(delta)
