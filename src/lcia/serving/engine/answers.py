"""The engine, for coroutines."""

import asyncio
from collections.abc import AsyncGenerator

from lcia.models import AdapterHost
from lcia.serving.engine.engine import Engine, News
from lcia.serving.engine.job import Delta, Job, Prompt
from lcia.serving.engine.limits import EngineLimits


class Answers:
    """Runs an engine and hands its news to whoever waits for them.

    Args:
        host: of the model.
        limits: what the engine may use.
    """

    def __init__(self, host: AdapterHost, *, limits: EngineLimits) -> None:
        self.engine = Engine(
            host.base, limits=limits, deliver=self._deliver, projector=host.projector
        )

    def start(self) -> None:
        """Start the engine; its news arrive in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self.engine.start()

    async def stop(self) -> None:
        """Stop the engine; whoever still waits gets an error."""
        await asyncio.to_thread(self.engine.stop)

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Yield the news of an answer; closed before the last one, the answer is given up.

        Raises:
            QueueFullError: at once, when too many wait.
            GenerationTimeoutError: the answer was not finished in time.
            LciaError: the adapter cannot be used, or the engine stops.
        """
        news: asyncio.Queue[Delta] = asyncio.Queue()
        job = Job(prompt, news.put_nowait)
        self.engine.submit(job)
        ended = False
        try:
            while not ended:
                delta = await news.get()
                ended = delta.last
                if delta.error is not None:
                    raise delta.error
                yield delta
        finally:
            if not ended:
                self.engine.cancel(job)

    def _deliver(self, news: News) -> None:
        # One wake-up of the loop per step, however many answers are running.
        self._loop.call_soon_threadsafe(_call_listeners, news)


def _call_listeners(news: News) -> None:
    for job, delta in news:
        job.listener(delta)
