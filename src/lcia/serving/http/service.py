"""From a request to an answer: route, tokenise, check what fits, generate, count."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Any

from jinja2 import TemplateError

from lcia.data import Image, Message
from lcia.errors import ConfigError, ModelError
from lcia.models import AdapterHost
from lcia.models.visual import VisualFormat
from lcia.serving.config import ServeConfig
from lcia.serving.engine.answers import Answers
from lcia.serving.engine.job import Delta, Prompt
from lcia.serving.engine.sampling import Sampling
from lcia.serving.http.api_error import ApiError, api_error
from lcia.serving.http.images import load_images, open_pictures
from lcia.serving.http.metrics import Metrics
from lcia.serving.http.routing import Choice, choose_adapter, explain
from lcia.serving.http.schemas import ChatMessage, ChatRequest, CompletionRequest, user_turns
from lcia.serving.live import BASE, LiveStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that will be answered.

    Attributes:
        prompt: for the engine.
        choice: what answers.
    """

    prompt: Prompt
    choice: Choice


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
        known = getattr(host.base.model.config.get_text_config(), "max_position_embeddings", None)
        if known is not None and config.limits.max_context > known:
            raise ConfigError(
                f"--max-context {config.limits.max_context}: the model reads {known} tokens."
            )
        self.config = config
        self.live = live
        self.metrics = Metrics()
        self.answers = Answers(host, limits=config.limits)
        self._tokenizer = host.base.tokenizer
        self._chat = host.chat
        self._chat.max_prompt_tokens = sys.maxsize  # too long a prompt is refused, never cut
        self._longest_token = max(map(len, self._tokenizer.get_vocab()))
        # One thread: a tokenizer may not be used by two at once.
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="lcia-prepare")
        self._add_gauges()

    async def prepare(self, asked: ChatRequest | CompletionRequest) -> Prepared:
        """Route and tokenise a request.

        Raises:
            ApiError: there is no such model, the prompt is too long or nothing the model takes.
        """
        urls = [url for message in asked.conversation for url in message.image_urls]
        if urls and not isinstance(self._chat, VisualFormat):
            raise ApiError(
                400,
                "This model reads no pictures; send text alone.",
                code="unsupported_content",
                param="messages",
            )
        pictures = await load_images(urls, fetch=self.config.fetch_images) if urls else []
        return await self._in_thread(self._prepare, asked, pictures)

    async def explain(self, turns: Sequence[str]) -> dict[str, Any]:
        """Return which group would answer a conversation, and what that rests on."""
        return await self._in_thread(explain, self.live.current, turns)

    async def generate(self, prepared: Prepared) -> AsyncGenerator[Delta, None]:
        """Yield the news of an answer, and count them; see ``Answers.generate``."""
        started, choice, delta = time.monotonic(), prepared.choice, Delta()
        self.metrics.routed.labels(choice.group or BASE, choice.reason).inc()
        self.metrics.tokens.labels("prompt").inc(len(prepared.prompt.ids))
        pieces: list[str] = []
        try:
            async with aclosing(self.answers.generate(prepared.prompt)) as deltas:
                async for delta in deltas:
                    if not pieces:
                        self.metrics.first_token_seconds.observe(time.monotonic() - started)
                    pieces.append(delta.text)
                    yield delta
        except (asyncio.CancelledError, GeneratorExit):
            if not delta.last:  # closed after the last piece, the answer is whole
                self.metrics.cancelled.inc()
            raise
        except Exception as error:
            self.metrics.failed.labels(api_error(error).code).inc()
            raise
        finally:
            self.metrics.tokens.labels("answer").inc(delta.tokens)
            if self.config.log_prompts:
                prompt = self._tokenizer.decode(prepared.prompt.ids)
                logger.info("%s answers %r with %r", choice.group, prompt, "".join(pieces))

    async def stop(self) -> None:
        """Stop the engine and the threads."""
        await self.answers.stop()
        self._preparing.shutdown()

    async def _in_thread(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work, *args)

    def _prepare(
        self, asked: ChatRequest | CompletionRequest, pictures: Sequence[bytes]
    ) -> Prepared:
        messages = asked.conversation
        self._check_size(messages)
        started = time.perf_counter()
        choice = choose_adapter(self.live.current, asked.model, user_turns(messages))
        if choice.decision is not None:
            self.metrics.routing_seconds.observe(time.perf_counter() - started)
        if isinstance(asked, CompletionRequest):
            ids: list[int] = self._tokenizer(asked.prompt)["input_ids"]
            visual: dict[str, Any] = {}
        else:
            ids, visual = self._chat_inputs(messages, pictures)
        prompt = Prompt(
            ids=tuple(ids),
            pictures=visual,
            adapter=choice.adapter,
            max_new_tokens=self._answer_tokens(len(ids), asked.answer_tokens),
            sampling=Sampling(
                temperature=asked.temperature or 0.0,
                top_p=1.0 if asked.top_p is None else asked.top_p,
                seed=asked.seed,
            ),
            stops=asked.stops,
            timeout_s=self.config.timeout_s,
        )
        return Prepared(prompt=prompt, choice=choice)

    def _chat_inputs(
        self, messages: Sequence[ChatMessage], pictures: Sequence[bytes]
    ) -> tuple[list[int], dict[str, Any]]:
        """Return a conversation's token ids, and what the processor makes of its pictures."""
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
            if not pictures:
                return self._chat.encode_prompt(turns)[0], {}
            assert isinstance(self._chat, VisualFormat)
            # The paths are numbers of pictures in memory: no request names a file.
            opened = open_pictures(pictures)
            self._chat.open_picture = lambda path: opened[int(path)]
            batch = self._chat.prompts([turns])
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
        if least >= self.config.limits.max_context:
            raise self._too_long(f"more than {least}")

    def _answer_tokens(self, prompt_tokens: int, wanted: int | None) -> int:
        room = self.config.limits.max_context - prompt_tokens
        if room < 1 or (wanted or 1) > room:
            raise self._too_long(f"{prompt_tokens}", wanted)
        if wanted is not None and wanted > self.config.max_new_tokens:
            raise ApiError(
                400,
                f"'max_tokens' is {wanted}; this server answers with at most "
                f"{self.config.max_new_tokens} tokens.",
                code="invalid_value",
                param="max_tokens",
            )
        return min(room, wanted or self.config.max_new_tokens)

    def _too_long(self, prompt_tokens: str, wanted: int | None = None) -> ApiError:
        answer = f", and {wanted} were asked for" if wanted else ""
        return ApiError(
            400,
            f"The prompt has {prompt_tokens} tokens{answer}; prompt and answer together have at "
            f"most {self.config.limits.max_context}.",
            code="context_length_exceeded",
            param="messages",
        )

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
            self.metrics.watch(name, text, value)
