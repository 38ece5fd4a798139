"""From a request to an answer: route, tokenise, check what fits, generate, count."""

import asyncio
import copy
import logging
import queue
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from jinja2 import TemplateError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lcia.data import Image, Message
from lcia.errors import ModelError
from lcia.grouping import Said
from lcia.models import AdapterHost, ChatFormat
from lcia.models.visual import VisualFormat
from lcia.serving.config import ServeConfig
from lcia.serving.engine.engine import Answer, Answers
from lcia.serving.engine.job import Delta, Prompt
from lcia.serving.engine.limits import PromptTooLongError
from lcia.serving.engine.sampling import Sampling
from lcia.serving.http.api_error import ApiError, api_error
from lcia.serving.http.images import load_images, open_images
from lcia.serving.http.routing import Choice, choose_named, explain
from lcia.serving.http.schemas import ChatMessage, ChatRequest, CompletionRequest, said_in
from lcia.serving.live import BASE, LiveStore

logger = logging.getLogger(__name__)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
ROUTING_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.05, 0.25)


class Monitoring:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def make(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **more: Any) -> Any:
            return kind(f"lcia_{name}", text, labels, registry=self.registry, **more)

        self.requests = make(Counter, "requests", "Requests answered.", ("path", "status"))
        self.request_seconds = make(
            Histogram,
            "request_seconds",
            "Time to the end of a response.",
            ("path",),
            buckets=SECONDS,
        )
        self.first_token_seconds = make(
            Histogram, "first_token_seconds", "Time to the first token.", buckets=SECONDS
        )
        self.routing_seconds = make(
            Histogram, "routing_seconds", "Time to choose a group.", buckets=ROUTING_SECONDS
        )
        self.tokens = make(Counter, "tokens", "Tokens read and generated.", ("kind",))
        self.routed = make(Counter, "routed", "Answers by group and reason.", ("group", "reason"))
        self.cancelled = make(Counter, "cancelled", "Answers given up by their clients.")
        self.failed = make(Counter, "failed", "Answers that failed, by code.", ("code",))

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(f"lcia_{name}", text, registry=self.registry).set_function(value)

    def page(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


PROBED = 16
"""Characters, for each token of the context, that are tokenised first of a longer text."""

FAILED = (500, 504)
"""Statuses of answers that failed, and neither their client nor a full server is at fault."""

AT_THE_CUT = 64
"""Tokens, at most, that a text's beginning has more than they are in the whole of it."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that will be answered.

    Attributes:
        prompt: for the engine.
        choice: what answers.
        answer: on its way; given up when nobody holds on to it.
        asked: what the client sent.
    """

    prompt: Prompt
    choice: Choice
    answer: Answer
    asked: ChatRequest | CompletionRequest


KeepReceipts = Callable[[Sequence[tuple[str, Prepared, str, Delta]]], Awaitable[None]]
"""Told the id of every whole answer, what it answers, its text and its last piece of news."""

CountFailure = Callable[[Prepared], Awaitable[None]]
"""Told what was to be answered and failed, through no fault of the client."""


class Service:
    """Everything a server needs to answer.

    Args:
        host: of the model, without adapters.
        live: the assistant.
        config: the server's settings.

    Raises:
        ConfigError: the model's context is shorter than ``max_context``.
        ModelError: the model cannot be batched.
    """

    def __init__(self, host: AdapterHost, live: LiveStore, *, config: ServeConfig) -> None:
        limits = config.limits.fitted(host.base.facts.positions)
        self.config = replace(config, limits=limits)
        self.live = live
        self.monitoring = Monitoring()
        self.keep_receipts: KeepReceipts | None = None
        self.count_failure: CountFailure | None = None
        self.answers = Answers(host, limits=limits)
        self._tokenizer = host.base.tokenizer
        self._chat = host.chat
        self._chat.max_prompt_tokens = sys.maxsize  # too long a prompt is refused, never cut
        self._longest_token = max(map(len, self._tokenizer.get_vocab()))
        # A tokenizer may not be used by two threads at once: each preparing one takes a format.
        self._formats: queue.SimpleQueue[ChatFormat] = queue.SimpleQueue()
        for _ in range(config.limits.preparing):
            self._formats.put(copy.deepcopy(self._chat))
        self._routing = threading.Lock()
        self._add_gauges()

    async def prepare(self, asked: ChatRequest | CompletionRequest) -> Prepared:
        """Route and tokenise a request.

        Raises:
            ApiError: there is no such model, or nothing that the model takes.
            LciaError: the prompt is too long or empty, too many wait, or it took too long.
        """
        urls = [url for message in asked.conversation for url in message.image_urls]
        if urls and not isinstance(self._chat, VisualFormat):
            raise ApiError(
                400,
                "This model reads no images; send text alone.",
                code="unsupported_content",
                param="messages",
            )
        images = None
        if urls:
            # They are on their way while the job waits, and within the job's own time.
            loading = load_images(urls, fetch=self.config.fetch_images)
            images = asyncio.run_coroutine_threadsafe(loading, asyncio.get_running_loop())
        chosen: list[Choice] = []
        self._check_size(asked.conversation)

        def prepare() -> Prompt:
            self._check_beginnings(asked.conversation)
            chosen.append(self._choose(asked))
            return self._prompt(asked, chosen[0], images.result() if images else ())

        answer = self.answers.ask(
            prepare=prepare,
            size=sum(len(message.text) for message in asked.conversation),
            after=images,
            timeout_s=self.config.timeout_s,
        )
        return Prepared(
            prompt=await answer.prepared(), choice=chosen[0], answer=answer, asked=asked
        )

    async def prepare_all(self, asked: Sequence[ChatRequest | CompletionRequest]) -> list[Prepared]:
        """Route and tokenise the prompts of a request; one that fails fails all of them."""
        working = [asyncio.ensure_future(self.prepare(one)) for one in asked]
        try:
            return await asyncio.gather(*working)
        finally:
            for task in working:
                task.cancel()

    async def explain(self, said: Said) -> dict[str, Any]:
        """Return which group would answer a conversation, and what that rests on."""

        def work() -> dict[str, Any]:
            with self._routing:
                return explain(self.live.current, said)

        return await asyncio.to_thread(work)

    async def generate(self, prepared: Prepared) -> AsyncGenerator[Delta, None]:
        """Yield the news of an answer, and count them; see ``Answer.deltas``."""
        started, choice, delta = time.monotonic(), prepared.choice, Delta()
        self.monitoring.routed.labels(choice.group or BASE, choice.reason).inc()
        self.monitoring.tokens.labels("prompt").inc(len(prepared.prompt.ids))
        pieces: list[str] = []
        try:
            async with aclosing(prepared.answer.deltas()) as deltas:
                async for delta in deltas:
                    if not pieces:
                        self.monitoring.first_token_seconds.observe(time.monotonic() - started)
                    pieces.append(delta.text)
                    yield delta
        except (asyncio.CancelledError, GeneratorExit):
            if not delta.last:  # closed after the last piece, the answer is whole
                self.monitoring.cancelled.inc()
            raise
        except Exception as error:
            told = api_error(error)
            self.monitoring.failed.labels(told.code).inc()
            if self.count_failure is not None and told.status in FAILED:
                await self.count_failure(prepared)
            raise
        finally:
            self.monitoring.tokens.labels("answer").inc(delta.tokens)
            if self.config.log_prompts:
                prompt = self._tokenizer.decode(prepared.prompt.ids)
                logger.info("%s answers %r with %r", choice.group, prompt, "".join(pieces))

    async def stop(self) -> None:
        """Stop the engine and its threads."""
        await self.answers.stop()

    def _choose(self, asked: ChatRequest | CompletionRequest) -> Choice:
        """Return which adapter answers; called on one of the engine's preparing threads."""
        with self._routing:
            started = time.perf_counter()
            said = said_in(asked.conversation)
            choice = choose_named(self.live, asked.model, said)
            if choice.decision is not None:
                self.monitoring.routing_seconds.observe(time.perf_counter() - started)
        return choice

    def _prompt(
        self,
        asked: ChatRequest | CompletionRequest,
        choice: Choice,
        images: Sequence[bytes],
    ) -> Prompt:
        """Return what the model reads; called on one of the engine's preparing threads."""
        chat = self._formats.get()
        try:
            ending = chat.answering.ending
            visual: dict[str, Any] = {}
            if isinstance(asked, CompletionRequest):
                encoder = chat.encoder
                ids = [*encoder.before, *encoder.encode(encoder.protect(asked.prompt))]
                lead, lead_tokens, stops = "", 0, asked.stops
            else:
                ids, visual = self._chat_inputs(chat, asked.conversation, images)
                lead, lead_tokens = ending.lead, ending.lead_tokens
                stops = (*asked.stops, *ending.stop_strings)
        finally:
            self._formats.put(chat)
        # What does not fit is the engine's to say, and how much of an answer does.
        wanted = min(asked.answer_tokens or sys.maxsize, self.config.max_new_tokens)
        return Prompt(
            ids=tuple(ids),
            images=visual,
            adapter=choice.adapter,
            max_new_tokens=wanted + lead_tokens,
            sampling=Sampling(
                temperature=asked.temperature or 0.0,
                top_p=1.0 if asked.top_p is None else asked.top_p,
                seed=asked.seed,
            ),
            stops=stops,
            lead=lead,
        )

    def _chat_inputs(
        self, chat: ChatFormat, messages: Sequence[ChatMessage], images: Sequence[bytes]
    ) -> tuple[list[int], dict[str, Any]]:
        """Return a conversation's token ids, and what the processor makes of its images."""
        numbers = map(str, count())
        turns = [
            Message(
                role={"developer": "system"}.get(message.role, message.role),
                content=message.text,
                images=tuple(Image(path=next(numbers), at=at) for at in message.image_places),
            )
            for message in messages
        ]
        try:
            if not images:
                return chat.encode_prompt(turns)[0], {}
            assert isinstance(chat, VisualFormat)
            # The paths are numbers of images in memory: no request names a file.
            opened = open_images(images)
            chat.open_image = lambda path: opened[int(path)]
            batch = chat.prompts([turns])
            ids = batch.pop("input_ids")[0].tolist()
            del batch["attention_mask"]
            return ids, batch
        except (ModelError, TemplateError, ValueError) as error:
            raise ApiError(
                400,
                f"The model refuses these messages: {error}",
                code="invalid_messages",
                param="messages",
            ) from error

    def _check_size(self, messages: Sequence[ChatMessage]) -> None:
        """Refuse, before any work, what cannot fit even if all tokens were the longest one."""
        least = sum(len(message.text) for message in messages) // self._longest_token
        if least >= self.config.limits.context:
            limit = self.config.limits.context
            raise PromptTooLongError(f"more than {least}", max_context=limit)

    def _check_beginnings(self, messages: Sequence[ChatMessage]) -> None:
        """Refuse a text whose beginning alone does not fit.

        To route and tokenise a megabyte takes a tenth of a second, which others wait for.
        Templates may leave out what an assistant said, and the space around a text.
        """
        limit = self.config.limits.context
        texts = [message.text for message in messages if message.role != "assistant"]
        long = [text.strip() for text in texts if len(text) > PROBED * limit]
        if not long:
            return
        chat = self._formats.get()
        try:
            tokens = max(len(chat.encoder.encode(text[: PROBED * limit])) for text in long)
        finally:
            self._formats.put(chat)
        if tokens - AT_THE_CUT >= limit:
            raise PromptTooLongError(f"more than {tokens - AT_THE_CUT}", max_context=limit)

    def _add_gauges(self) -> None:
        engine, bank = self.answers.engine, self.answers.engine.bank
        for name, text, value in (
            ("running", "Answers being generated.", lambda: engine.running),
            ("waiting", "Requests without a place yet.", lambda: engine.waiting),
            ("adapters_loaded", "Adapters in memory.", lambda: len(bank.loaded)),
            ("adapter_bytes", "Memory the adapters take.", lambda: bank.nbytes),
            ("adapter_loads", "Adapters read since the start.", lambda: bank.loads),
            ("store_version", "Version in service.", lambda: self.live.current.number),
        ):
            self.monitoring.watch(name, text, value)
