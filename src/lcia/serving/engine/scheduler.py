"""Who is answered when: every job from its arrival to its last event."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

import torch

from lcia.errors import LciaError
from lcia.memory import is_out_of_memory
from lcia.models.answering import Answering
from lcia.serving.engine.batch import PREFILL_TOKENS, Batch, Prefill
from lcia.serving.engine.job import CANCELLED, Delta, Job, Prompt, State
from lcia.serving.engine.limits import (
    EngineLimits,
    GenerationFailedError,
    GenerationTimeoutError,
    QueueFullError,
    adapter_error,
    generation_error,
)
from lcia.serving.engine.sampling import choose, peaks

logger = logging.getLogger(__name__)

LONG = 1 << 15
"""Characters; requests with more never keep all preparing threads busy."""

News = list[tuple[Job, Delta]]
PLACED = (State.ADMITTED, State.RUNNING)
QUEUED = (State.WAITING, State.PREPARING, State.READY)
WORK = (State.RUNNING, State.ADMITTED, State.READY)


class Scheduler:
    """Owns every job: one table, in order of arrival, and one method a transition.

    A job goes from ``WAITING`` over ``PREPARING``, ``READY``, ``ADMITTED`` and ``RUNNING`` to
    ``ENDED`` (``arrive``, ``_begin_preparing``, ``_become_ready``, ``_admit``, ``_run``, ``_end``).
    Each job hears one last event, and leaves the table with it. An error of one job ends that
    job. An error of the device ends the jobs that were on it; the others go on.

    ``arrive`` and ``cancel`` may be called on any thread, ``prepare_next`` on threads of its own,
    ``step`` on the one that owns the model.

    Args:
        batch: the model and the rows it works on.
        answering: turns tokens into text, and says which ones end an answer.
        limits: what may be used.
        deliver: called with news; takes all of them, or raises and has taken none.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        answering: Answering,
        limits: EngineLimits,
        deliver: Callable[[News], None],
    ) -> None:
        self.batch = batch
        self.changed = threading.Condition()
        self._limits = limits
        self._answering = answering
        self._deliver = deliver
        self._jobs: dict[Job, None] = {}
        self._news: News = []
        self._telling = threading.Lock()
        self._seconds = 1.0
        self._closed: Exception | None = None

    @property
    def closed(self) -> bool:
        """Whether no more jobs are taken."""
        return self._closed is not None

    def count(self, *states: State) -> int:
        """Return how many jobs are in one of these states."""
        return len(self._in(*states))

    # What happens to a job.

    def arrive(self, job: Job) -> None:
        """Take a job into the table.

        Raises:
            QueueFullError: as many wait as may.
            PromptError: its prompt is nothing that the model can read.
            ShuttingDownError: the engine was stopped.
        """
        if job.prompt is not None:
            job.prompt = self._fitting(job.prompt)
        with self.changed:
            if self._closed is not None:
                raise self._closed
            # Who waits for a place that is free already is about to leave the queue.
            free = max(0, self._limits.max_batch - self.count(*PLACED))
            waiting = self.count(*QUEUED) - free
            if waiting >= self._limits.max_waiting:
                rounds = (waiting + 1) / self._limits.max_batch
                raise QueueFullError(waiting, min(60, math.ceil(rounds * self._seconds)))
            job.state = State.READY if job.prompt is not None else State.WAITING
            self._jobs[job] = None
            self.changed.notify_all()
        if job.after is not None:
            job.after.add_done_callback(lambda _: self._wake())

    def _begin_preparing(self) -> Job | None:
        """Return the next job to prepare, and None where there is none yet."""
        busy = [job for job in self._in(State.PREPARING) if job.size > LONG]
        room_for_long = len(busy) < max(1, self._limits.preparing - 1)
        for job in self._in(State.WAITING):
            arrived = job.after is None or job.after.done()
            if arrived and (room_for_long or job.size <= LONG):
                job.state = State.PREPARING
                return job
        return None

    def _become_ready(self, job: Job, prompt: Prompt) -> None:
        prompt = self._fitting(prompt)
        with self.changed:
            if job.state is State.PREPARING:  # else it was cancelled, or its time was up
                job.prompt, job.state = prompt, State.READY
                self._news.append((job, Delta(prompt=prompt)))

    def _admit(self, job: Job) -> None:
        """Give a job its place."""
        job.state = State.ADMITTED
        try:
            self.batch.acquire(job)
            job.start(self._answering.text)
        except Exception as error:  # whatever is wrong with one adapter, others are admitted
            told = adapter_error(job.asked.adapter, error)
            logger.warning("%s", told, exc_info=not isinstance(error, LciaError))
            self._end(job, Delta(error=told))

    def _run(self, prefill: Prefill, jobs: Sequence[Job]) -> None:
        """Let jobs whose prompts have been read grow with the others."""
        self.batch.join(prefill, jobs)
        for job in jobs:
            job.state = State.RUNNING

    def _end(self, job: Job, last: Delta) -> None:
        """Tell a job its last event, and free what it has."""
        placed = job.state in PLACED
        if self._leave(job, last) and placed:
            self.batch.remove(job)

    def _leave(self, job: Job, last: Delta) -> bool:
        """Take a job off the table; all ends lead here. Return False if it had ended before."""
        with self.changed:
            if job.state is State.ENDED:
                return False
            job.state = State.ENDED
            del self._jobs[job]
            self._news.append((job, last))
        if job.after is not None:
            job.after.cancel()
        return True

    # What happens with every step.

    @torch.inference_mode()
    def step(self) -> None:
        """Take every job as far as one forward pass takes it, and tell the news.

        Raises:
            Exception: news could not be delivered. They are kept, and nothing goes on without them.
        """
        self.tell()
        for half in (self._read, self._generate):
            try:
                half()
            except Exception as error:  # the batch's outermost edge: the engine must go on
                logger.exception("a step failed")
                self._end_batch(generation_error(error))
            self.tell()

    def end_all(self, error: Exception) -> None:
        """End all jobs, wherever they are, and tell them."""
        self._end_batch(error)
        for job in self._in(*QUEUED):
            self._leave(job, Delta(error=error))
        self.tell()

    def _read(self) -> None:
        """Read prompts; their first tokens are told before others have their next ones."""
        self._end_those_gone()
        self._admit_those_ready()
        if self.batch.reading:
            self._read_prompts(self.batch.reading[0])

    def _end_those_gone(self) -> None:
        with self.changed:
            gone = [job for job in self._jobs if job.gone]
        for job in gone:
            if job.cancelled:
                self._end(job, Delta(tokens=len(job.tokens), finish_reason=CANCELLED))
            else:
                text = f"The answer was not finished in {job.timeout_s:g} s."
                self._end(job, Delta(error=GenerationTimeoutError(text)))

    def _admit_those_ready(self) -> None:
        if not (ready := self._in(State.READY)):
            return
        places = self._limits.max_batch - self.count(*PLACED)
        group = self._read_next(ready)[:places]
        for job in group:
            self._admit(job)
        if admitted := [job for job in group if job.state is State.ADMITTED]:
            self.batch.read_together(admitted)

    def _read_next(self, ready: Sequence[Job]) -> list[Job]:
        """Return ready jobs whose prompts are read together, at once or alone in pieces.

        One long prompt is read at a time. Short ones take turns with it. Where the cache has no
        room for the next one, it waits, and all behind it.
        """
        group: list[Job] = []
        placed = self._in(*PLACED)
        width = 0
        if len(self.batch.reading) > 1:
            return group
        for job in ready:
            length = len(job.asked.ids)
            if length > PREFILL_TOKENS and self.batch.reading:
                continue
            width = max(width, length)
            alone = job.asked.images or (group and group[-1].asked.images)
            if group and (alone or width * (len(group) + 1) > PREFILL_TOKENS):
                break
            if not self.batch.has_room(placed, [*group, job]):
                break
            group.append(job)
        return group

    def _read_prompts(self, prefill: Prefill) -> None:
        try:
            logits = self.batch.read(prefill)
        except Exception as error:  # of one prompt, or of memory for all of them
            logger.warning("reading %d prompts failed", len(prefill.jobs), exc_info=True)
            if len(prefill.jobs) > 1:
                self.batch.split(prefill)
            else:
                self._end(prefill.jobs[0], Delta(error=generation_error(error)))
            return
        if logits is not None:
            self._choose(prefill.jobs, logits)
            if going_on := [job for job in prefill.jobs if job.state is State.ADMITTED]:
                self._run(prefill, going_on)

    def _generate(self) -> None:
        if not (jobs := list(self.batch.rows)):
            return
        try:
            logits = self.batch.generate()
        except Exception as error:
            if not (is_out_of_memory(error) and self.batch.intact and len(jobs) > 1):
                raise
            logger.warning("no memory for %d answers; half of them end", len(jobs), exc_info=True)
            for job in sorted(jobs, key=lambda job: job.admitted)[len(jobs) // 2 :]:
                self._end(job, Delta(error=generation_error(error)))
            return
        self._choose(jobs, logits)

    def _choose(self, jobs: Sequence[Job], logits: torch.Tensor) -> None:
        """Give each job its next token; the answers that it ends are over."""
        going_on: News = []
        for row, (job, peak) in enumerate(zip(jobs, peaks(logits), strict=True)):
            if job.state is State.ENDED:
                continue
            try:
                token = choose(logits, row, peak, job.asked.sampling, job.generator)
                delta = job.take(token, self._answering.stop_ids)
            except Exception as error:  # of one row: the others have their tokens
                logger.warning("an answer cannot go on", exc_info=True)
                delta = Delta(error=generation_error(error))
            if delta.last:
                self._end(job, delta)
                self._seconds += 0.1 * (time.monotonic() - job.admitted - self._seconds)
            else:
                going_on.append((job, delta))
        with self.changed:
            self._news += going_on

    def _end_batch(self, error: Exception) -> None:
        """End all jobs on the device after it failed."""
        for job in self._in(*PLACED):
            self._leave(job, Delta(error=error))
        self.batch.clear()

    # What other threads call.

    def cancel(self, job: Job) -> None:
        """Give up a job: its place is free after the next step."""
        job.cancelled = True
        self._wake()

    def close(self, error: Exception) -> None:
        """Take no more jobs; whoever comes hears this error."""
        with self.changed:
            self._closed = error
            self.changed.notify_all()

    def prepare_next(self) -> bool:
        """Wait for a job to prepare, and prepare it; return False once closed."""
        with self.changed:
            while (job := self._begin_preparing()) is None:
                if self._closed is not None:
                    return False
                self.changed.wait()
        # What is no Exception, as a panic in a tokenizer's Rust, ends this thread: told as well.
        last: Delta | None = Delta(error=GenerationFailedError("Its prompt could not be prepared."))
        try:
            assert job.prepare is not None
            self._become_ready(job, job.prepare())
            last = None
        except Exception as error:  # noqa: BLE001 - whatever it is answers this request
            last = Delta(error=error)
        finally:
            if last is not None:
                self._end(job, last)
            self._wake()
        try:
            self.tell()
        except Exception:  # the news are kept, and told with those of the next step
            logger.warning("news wait for the next step", exc_info=True)
        return True

    def wait(self) -> None:
        """Wait until there is something to do for ``step``, or the scheduler is closed."""
        with self.changed:
            while not (self._closed or self._news):
                if any(job.state in WORK or job.gone for job in self._jobs):
                    return
                first = min((job.deadline for job in self._jobs), default=math.inf)
                patience = max(0.0, first - time.monotonic()) + 1e-3
                self.changed.wait(None if math.isinf(patience) else patience)

    def tell(self) -> None:
        """Deliver the news, in order.

        Raises:
            Exception: of ``deliver``; the news are kept.
        """
        if not self._news:
            return
        with self._telling:
            with self.changed:
                news, self._news = self._news, []
            try:
                self._deliver(news)
            except Exception:
                with self.changed:
                    self._news[:0] = news
                raise

    def _in(self, *states: State) -> list[Job]:
        with self.changed:
            return [job for job in self._jobs if job.state in states]

    def _wake(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def _fitting(self, prompt: Prompt) -> Prompt:
        return prompt.fitting(
            max_context=self._limits.context,
            vocabulary=self.batch.vocabulary,
            cells=self.batch.cells,
        )
