"""Continuous batching: one forward pass per token for all answers, whatever their adapters."""

import inspect
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lcia.errors import LciaError, ModelError
from lcia.models import BaseModel, ChatFormat
from lcia.models.answering import LEAST_PROMPT
from lcia.models.prefix import cache_argument
from lcia.models.projector import Projector
from lcia.serving.engine.arena import Arena
from lcia.serving.engine.bank import AdapterBank
from lcia.serving.engine.job import Delta, Job
from lcia.serving.engine.limits import (
    EngineLimits,
    GenerationFailedError,
    GenerationTimeoutError,
    QueueFullError,
    ShuttingDownError,
)
from lcia.serving.engine.prefill import Prefill
from lcia.serving.engine.sampling import choose

logger = logging.getLogger(__name__)

ATTENTION = {"full_attention", "sliding_attention"}
PREFILL_TOKENS = 512
"""Prompt tokens read between two steps of the running answers."""

News = list[tuple[Job, Delta]]


class Engine:
    """Generates answers on one thread that alone touches the model.

    A step reads a piece of the next prompts, or all of them if they are short, and generates one
    token for every running answer. Answers join between steps and leave as soon as they end.

    Args:
        base: the model; its weights are never changed, but for ``projector``.
        limits: what it may use.
        deliver: called on the engine's thread with the news of each step; by default every
            job's listener is called there.
        projector: of a vision-language model; swapped for that of each prompt with pictures.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        limits: EngineLimits | None = None,
        deliver: Callable[[News], None] | None = None,
        projector: Projector | None = None,
    ) -> None:
        check_model(base.model)
        self.limits = limits or EngineLimits()
        self.bank = AdapterBank(base.model, max_loaded=self.limits.max_adapters)
        self._model = base.model
        self._tokenizer = base.tokenizer
        chat = ChatFormat(base.tokenizer, max_prompt_tokens=LEAST_PROMPT, facts=base.facts)
        self._stop_ids, self._pad_id = chat.answering.stop_ids, chat.pad_id
        self._deliver = deliver or _call_listeners
        self._projector = projector
        takes = inspect.signature(base.model.forward).parameters
        self._cache = cache_argument(base.model)
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._arena = Arena(layers=base.model.config.get_text_config().num_hidden_layers)
        self._running: list[Job] = []
        self._prefill: Prefill | None = None
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds = 1.0
        self._thread = threading.Thread(target=self._run, name="lcia-engine", daemon=True)

    @property
    def running(self) -> int:
        """Answers being generated, those whose prompt is being read included."""
        return len(self._running) + (len(self._prefill.jobs) if self._prefill else 0)

    @property
    def waiting(self) -> int:
        """Requests without a place yet."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its step; answers that are not finished get an error.

        The model is left without adapters, as it came.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.bank.detach()

    def submit(self, job: Job) -> None:
        """Queue a job; its listener hears of it from now on.

        Raises:
            QueueFullError: as many requests wait as may.
        """
        with self._changed:
            # Who waits for a place that is free already is about to leave the queue.
            waiting = len(self._waiting) - max(0, self.limits.max_batch - self.running)
            if waiting >= self.limits.max_waiting:
                rounds = (waiting + 1) / self.limits.max_batch
                raise QueueFullError(waiting, min(60, math.ceil(rounds * self._seconds)))
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Give up a job: it hears nothing more, and its place is free after the next step."""
        job.cancelled = True
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._stopping or self._waiting or self.running):
                    self._changed.wait()
                if self._stopping:
                    break
            news: News = []
            try:
                self._step(news)
            except Exception as error:  # the thread's outermost edge: it must go on
                logger.exception("a generation step failed")
                self._fail_all(GenerationFailedError(f"{type(error).__name__}: {error}"), news)
            self._tell(news)
        news = []
        self._fail_all(ShuttingDownError("The server is shutting down."), news)
        self._tell(news)

    def _tell(self, news: News) -> None:
        self._deliver([(job, delta) for job, delta in news if not job.cancelled])

    @torch.inference_mode()
    def _step(self, news: News) -> None:
        self._sweep(news)
        if self._prefill is None:
            self._admit(news)
        if self._prefill is not None:
            self._read_prompts(self._prefill, news)
        if self._running:
            self._generate(news)

    def _sweep(self, news: News) -> None:
        """Drop what was cancelled or took too long."""
        with self._changed:
            gone = [job for job in self._waiting if job.cancelled or job.overdue]
            for job in gone:
                self._waiting.remove(job)
        if self._prefill is not None:
            gone += [job for job in self._prefill.jobs if job.cancelled or job.overdue]
        gone += [job for job in self._running if job.cancelled or job.overdue]
        for job in gone:
            if not job.cancelled:
                text = f"The answer was not finished in {job.prompt.timeout_s:g} s."
                news.append((job, Delta(error=GenerationTimeoutError(text))))
            self._leave(job)
        if self._prefill is not None and all(job.cancelled for job in self._prefill.jobs):
            for job in self._prefill.jobs:
                self._release(job)
            self._prefill = None

    def _admit(self, news: News) -> None:
        """Take waiting jobs as far as there are places, and prompts that are read at once."""
        jobs: list[Job] = []
        places = self.limits.max_batch - len(self._running)
        width = 0
        with self._changed:
            while self._waiting and len(jobs) < places:
                following = self._waiting[0].prompt
                width = max(width, len(following.ids))
                alone = following.pictures or (jobs and jobs[-1].prompt.pictures)
                if jobs and (alone or width * (len(jobs) + 1) > PREFILL_TOKENS):
                    break
                jobs.append(self._waiting.popleft())
        for job in list(jobs):
            try:
                if job.prompt.adapter is not None:
                    self.bank.acquire(*job.prompt.adapter)
                    job.acquired = True
                job.start(self._tokenizer)
            except LciaError as error:
                jobs.remove(job)
                news.append((job, Delta(error=error)))
        if jobs:
            self._prefill = Prefill(jobs, model=self._model, pad_id=self._pad_id)

    def _read_prompts(self, prefill: Prefill, news: News) -> None:
        jobs = prefill.jobs
        if self._projector is not None and jobs[0].prompt.pictures:
            adapter = jobs[0].prompt.adapter
            self._projector.load(adapter[1] if adapter is not None else None)
        inputs = prefill.next_inputs(PREFILL_TOKENS)
        logits = self._forward(jobs, cache=prefill.cache, **inputs)
        if not prefill.finished:
            return
        self._prefill = None
        rows = [row for row, job in enumerate(jobs) if not job.cancelled]
        ended = self._take([jobs[row] for row in rows], logits[rows], news)
        kept = [row for row in rows if jobs[row] not in ended]
        if kept:
            self._arena.join(prefill.cache, prefill.lengths, kept)
            self._running += [jobs[row] for row in kept]
        for row, job in enumerate(jobs):
            if row not in kept:
                self._release(job)

    def _generate(self, news: News) -> None:
        device = self._model.device
        self._arena.make_room()
        places = zip(self._arena.lengths, self._running, strict=True)
        positions = [[place + job.shift] for place, job in places]
        logits = self._forward(
            self._running,
            input_ids=torch.tensor([[job.tokens[-1]] for job in self._running], device=device),
            attention_mask=self._arena.mask(device).long(),
            position_ids=torch.tensor(positions, device=device),
            cache=self._arena,
        )
        self._arena.advance()
        for job in self._take(self._running, logits, news):
            self._leave(job)

    def _forward(self, jobs: Sequence[Job], *, cache: Any, **inputs: Any) -> torch.Tensor:
        """Return the logits of each row's next token, shape (rows, vocabulary)."""
        self.bank.select([job.key for job in jobs])
        inputs[self._cache] = cache
        output = self._model(**inputs, use_cache=True, **self._options)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _take(self, jobs: Sequence[Job], logits: torch.Tensor, news: News) -> list[Job]:
        """Choose each job's next token, and return the jobs whose answer it ends."""
        settings = [job.prompt.sampling for job in jobs]
        tokens = choose(logits, settings, [job.generator for job in jobs])
        ended = []
        for job, token in zip(jobs, tokens, strict=True):
            delta = job.take(token, self._stop_ids)
            news.append((job, delta))
            if delta.last:
                ended.append(job)
                self._seconds += 0.1 * (time.monotonic() - job.admitted - self._seconds)
        return ended

    def _leave(self, job: Job) -> None:
        """Free whatever place the job has."""
        if job in self._running:
            row = self._running.index(job)
            self._arena.drop(row)
            self._running[row] = self._running[-1]
            self._running.pop()
        elif self._prefill is not None and job in self._prefill.jobs:
            job.cancelled = True  # its row is read to the end, and then left out
            return
        self._release(job)

    def _release(self, job: Job) -> None:
        if job.acquired and job.prompt.adapter is not None:
            self.bank.release(job.prompt.adapter[0])
            job.acquired = False

    def _fail_all(self, error: LciaError, news: News) -> None:
        with self._changed:
            jobs = [*self._running, *(self._prefill.jobs if self._prefill else ()), *self._waiting]
            self._waiting.clear()
        self._running, self._prefill = [], None
        self._arena.clear()
        for job in jobs:
            self._release(job)
        news += [(job, Delta(error=error)) for job in jobs]


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


def _call_listeners(news: News) -> None:
    for job, delta in news:
        job.listener(delta)
