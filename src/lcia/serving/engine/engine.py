"""Continuous batching: one forward pass per token for all answers, whatever their adapters.

``Engine`` is for threads, ``Answers`` for coroutines.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lcia.data import Message
from lcia.errors import ModelError
from lcia.models import AdapterHost, BaseModel, ChatFormat
from lcia.models.visual import Projector
from lcia.serving.engine.bank import AdapterBank
from lcia.serving.engine.batch import Batch, free_memory
from lcia.serving.engine.job import CANCELLED, Delta, Job, Prompt
from lcia.serving.engine.limits import EngineLimits, ShuttingDownError
from lcia.serving.engine.sampling import Sampling
from lcia.serving.engine.scheduler import PLACED, QUEUED, News, Scheduler

logger = logging.getLogger(__name__)

ATTENTION = {"full_attention", "sliding_attention"}
FREE_SHARE = 4
"""The cache may take one part in so many of the memory that is free, where nothing is said."""

PAUSE_S = 0.1
"""Between two attempts to deliver news that nobody took."""


class Engine:
    """Generates answers on one thread that alone touches the model.

    Answers join between steps and leave as soon as they end; ``Scheduler.step`` is what happens
    in between.

    Args:
        base: the model; until ``stop`` nobody else may use it.
        limits: what it may use.
        deliver: called with the news of each step; by default every job's listener is called, on
            the engine's threads.
        projector: of a vision-language model; swapped for that of each prompt with images.
        chat: makes prompts and says how answers end; by default the model's own template does.

    Raises:
        ConfigError: the model reads fewer tokens than ``limits`` asks for.
        ModelError: the model cannot be batched.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        limits: EngineLimits | None = None,
        deliver: Callable[[News], None] | None = None,
        projector: Projector | None = None,
        chat: ChatFormat | None = None,
    ) -> None:
        check_model(base.model)
        self.limits = (limits or EngineLimits()).fitted(base.facts.positions)
        bound = self.limits.cache_bytes or free_memory(base.model.device) // FREE_SHARE
        self.batch = Batch(
            base, max_adapters=self.limits.max_adapters, cache_bytes=bound, projector=projector
        )
        self._chat = chat or ChatFormat(
            base.tokenizer, max_prompt_tokens=self.limits.context, facts=base.facts
        )
        self.scheduler = Scheduler(
            self.batch,
            answering=self._chat.answering,
            limits=self.limits,
            deliver=deliver or call_listeners,
        )
        self._computes = threading.Event()
        self._leaving = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="lcia-engine", daemon=True)

    @property
    def bank(self) -> AdapterBank:
        """The adapters in memory."""
        return self.batch.bank

    @property
    def running(self) -> int:
        """Answers being generated, those whose prompt is being read included."""
        return self.scheduler.count(*PLACED)

    @property
    def waiting(self) -> int:
        """Requests without a place yet."""
        return self.scheduler.count(*QUEUED)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the threads."""
        self._thread.start()
        if self.limits.threads is not None:
            self._computes.wait()
            torch.set_num_threads(1)  # of this thread, and of those that have not computed yet
        for _ in range(self.limits.preparing):
            self._start_preparing()

    def stop(self) -> None:
        """End the thread after its step; answers that are not finished get an error.

        The model is left as it came. May be called on several threads.
        """
        error = ShuttingDownError("The server is shutting down.")
        self.scheduler.close(error)
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._end_all(error)
        with self._leaving:
            self.batch.detach()

    def submit(self, job: Job) -> None:
        """Queue a job; its listener hears of it from now on. See ``Scheduler.arrive``."""
        self.scheduler.arrive(job)

    def cancel(self, job: Job) -> None:
        """Give up a job: it hears that it ended, and its place is free after the next step."""
        self.scheduler.cancel(job)

    def prompt(
        self,
        asked: str | Sequence[Message],
        *,
        adapter: Path | None = None,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        stops: Sequence[str] = (),
    ) -> Prompt:
        """Return a prompt by the model's chat template.

        Args:
            asked: what the user says, or a whole conversation.
            adapter: directory of the adapter that answers; by default the base model does.
            max_new_tokens: longest answer in tokens.
            sampling: how tokens are chosen; by default greedily.
            stops: strings that end the answer, besides the template's own.
        """
        turns = [Message(role="user", content=asked)] if isinstance(asked, str) else asked
        ending = self._chat.answering.ending
        return Prompt(
            ids=tuple(self._chat.encode_prompt(turns)[0]),
            adapter=(str(adapter), adapter) if adapter is not None else None,
            max_new_tokens=max_new_tokens + ending.lead_tokens,
            sampling=sampling or Sampling(),
            stops=(*stops, *ending.stop_strings),
            lead=ending.lead,
        )

    def answer(self, prompts: Sequence[Prompt]) -> list[str]:
        """Answer prompts together, whatever their adapters, and wait for all of them.

        Raises:
            LciaError: of the first one that could not be answered.
        """
        answers = [_Whole() for _ in prompts]
        jobs = [Job(listener=a, prompt=p) for a, p in zip(answers, prompts, strict=True)]
        try:
            for job in jobs:
                self.submit(job)
            return [answer.done.result() for answer in answers]
        finally:
            for job in jobs:
                self.cancel(job)

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        if self.limits.threads is not None:
            torch.set_num_threads(self.limits.threads)
            torch.get_num_threads()  # now: this thread takes what is set when it first asks
        self._computes.set()
        while not self.scheduler.closed:
            self.scheduler.wait()
            try:
                self.scheduler.step()
            except Exception:  # the thread's outermost edge: it must go on
                logger.exception("news could not be delivered; trying again")
                time.sleep(PAUSE_S)
        self._end_all(ShuttingDownError("The server is shutting down."))

    def _end_all(self, error: Exception) -> None:
        try:
            self.scheduler.end_all(error)
        except Exception:  # nobody is left to be told
            logger.exception("the end could not be told")

    def _start_preparing(self) -> None:
        threading.Thread(target=self._prepare, name="lcia-prepare", daemon=True).start()

    def _prepare(self) -> None:
        try:
            while self.scheduler.prepare_next():
                pass
        finally:
            if not self.scheduler.closed:  # what is no Exception ended it
                self._start_preparing()


class _Whole:
    """Collects an answer."""

    def __init__(self) -> None:
        self.text = ""
        self.done: Future[str] = Future()

    def __call__(self, delta: Delta) -> None:
        self.text += delta.text
        if delta.error is not None:
            self.done.set_exception(delta.error)
        elif delta.last:
            self.done.set_result(self.text)


def check_model(model: Any) -> None:
    """Check that a model's cache can be batched.

    Raises:
        ModelError: it keeps other state than keys and values.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if model.config.is_encoder_decoder or not kinds <= ATTENTION:
        other = ", ".join(sorted(kinds - ATTENTION)) or "an encoder"
        raise ModelError(
            f"model: {type(model).__name__} has {other}; lcia serves decoders with full or "
            "sliding attention. 'lcia chat' and vLLM answer with others."
        )


def call_listeners(news: News) -> None:
    """Tell every job its news; a listener that fails is not called again."""
    for job, delta in news:
        try:
            job.listener(delta)
        except Exception:
            logger.exception("the listener of an answer failed; the answer is given up")
            job.cancelled = True
            job.listener = _nobody


def _nobody(delta: Delta) -> None:
    """Listen to what nobody wants to hear."""


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
