"""One answer being generated: what was asked, how far it is, and its text so far."""

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lcia.serving.engine.limits import CacheTooSmallError, PromptError, PromptTooLongError
from lcia.serving.engine.sampling import Sampling

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns the tokens of one answer into pieces of text whose sum is the decoded whole.

    A piece never ends within a character, and never holds the beginning of what may become a
    stop string.

    Args:
        decode: returns the text of tokens, without control tokens.
        stops: strings that end the answer; they and what follows are left out.
        lead: what the template writes before every answer; left out at the beginning.

    Attributes:
        stopped: whether a stop string was met.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = (), *, lead: str = ""
    ) -> None:
        self.stopped = False
        self._decode_ids = decode
        self._stops = tuple(stops)
        self._lead = lead.strip()
        self._ids: list[int] = []
        # Text is decoded from _start, because the first token of a word may look different
        # without the one before it; up to _read it was given out or is held back, as _before.
        self._start = self._read = 0
        self._before = self._held = ""

    def push(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        self._ids.append(token)
        now = self._decode_ids(self._ids[self._start :])
        if len(now) <= len(self._before) or now.endswith(UNFINISHED):
            return ""
        piece = now[len(self._before) :]
        self._start, self._read = self._read, len(self._ids)
        self._before = self._decode_ids(self._ids[self._start :])
        return self._until_stop(self._behind_lead(piece, last=False), last=False)

    def finish(self) -> str:
        """Return the text that was held back."""
        if self.stopped:
            return ""
        piece = self._decode_ids(self._ids[self._start :])[len(self._before) :]
        return self._until_stop(self._behind_lead(piece, last=True), last=True)

    def _behind_lead(self, piece: str, *, last: bool) -> str:
        """Hold text back until it is certain whether it is the lead."""
        if not self._lead:
            return piece
        text, self._held = self._held + piece, ""
        begun = text.lstrip()
        if begun.startswith(self._lead):
            behind, self._lead = begun[len(self._lead) :], ""
            return behind
        if not last and self._lead.startswith(begun):
            self._held = text
            return ""
        self._lead = ""
        return text

    def _until_stop(self, piece: str, *, last: bool) -> str:
        if self._lead:
            return ""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of ``text`` begin ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


CANCELLED = "cancelled"
"""``finish_reason`` of an answer that was given up."""


class State(enum.Enum):
    """How far a job is; it only ever moves down this list, and from anywhere to its end."""

    WAITING = "has arrived; its prompt is not made yet"
    PREPARING = "its prompt is being made"
    READY = "has a prompt, waits for a place"
    ADMITTED = "has a place and its adapter; its prompt is being read"
    RUNNING = "gets a token with every step"
    ENDED = "has told its last event"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What to answer.

    Attributes:
        ids: token ids of the prompt, at least one.
        images: what the model takes besides token ids, from its processor; such a prompt is read
            in one piece.
        adapter: key and directory of the adapter; None for the base model.
        max_new_tokens: longest answer in tokens; the engine cuts it to what fits its context.
        sampling: how tokens are chosen.
        stops: strings that end the answer.
        lead: what the template writes before every answer, which is no part of it.
    """

    ids: tuple[int, ...]
    images: Mapping[str, Any] = field(default_factory=dict)
    adapter: tuple[str, Path] | None = None
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    lead: str = ""

    @property
    def most_tokens(self) -> int:
        """Tokens of the prompt and its longest answer."""
        return len(self.ids) + self.max_new_tokens

    def fitting(self, *, max_context: int, vocabulary: int, cells: int | None = None) -> "Prompt":
        """Return the prompt with an answer no longer than fits.

        Args:
            max_context: tokens of prompt and answer together.
            vocabulary: how many tokens the model's embedding has.
            cells: tokens that the cache has room for, while the prompt is read; None: no bound.

        Raises:
            PromptError: it has no tokens, or one that the model does not have.
            PromptTooLongError: it leaves no room for an answer.
            CacheTooSmallError: it can never fit into the cache.
        """
        if not self.ids:
            raise PromptError("The prompt has no tokens; expected at least one.")
        room = max_context - len(self.ids)
        if room < 1:
            raise PromptTooLongError(str(len(self.ids)), max_context=max_context)
        largest = max(self.ids)
        # With images, some models keep their places outside of the embedding.
        if min(self.ids) < 0 or (largest >= vocabulary and not self.images):
            raise PromptError(
                f"The prompt has token {largest}; the model knows tokens 0 to {vocabulary - 1}."
            )
        if self.max_new_tokens < 1:
            raise PromptError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1.")
        answer = min(self.max_new_tokens, room)
        if cells is not None and 2 * len(self.ids) + answer > cells:
            raise CacheTooSmallError((len(self.ids), answer), cells=cells)
        return replace(self, max_new_tokens=answer)


@dataclass(frozen=True, kw_only=True)
class Delta:
    """News of an answer.

    Attributes:
        text: what was added.
        tokens: how many tokens were generated so far, the one that ends the answer included.
        finish_reason: ``stop``, ``length`` or ``cancelled`` with the last one, else None.
        error: why the answer cannot go on; with the last one only.
        prompt: what will be answered; with the first one of a job that was prepared.
    """

    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    error: Exception | None = None
    prompt: Prompt | None = None

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None or self.error is not None


@dataclass(eq=False, kw_only=True)
class Job:
    """A request in the engine; its state belongs to the ``Scheduler``.

    Attributes:
        listener: called with every delta; with exactly one last one, whatever happens.
        prompt: what to answer; None until it is prepared.
        prepare: makes the prompt, on a thread that may take its time; its errors are the answer.
        size: how much there is to prepare, in characters: long ones never keep all threads.
        after: what preparing waits for, such as images on their way; given up with the job.
        timeout_s: seconds until the answer is given up, waiting and preparing included.
        cancelled: set by whoever no longer wants the answer.
        acquired: whether the job keeps its adapter in memory.
        shift: what is added to a token's place to get its position: images take fewer positions
            than tokens where positions have three dimensions.
        tokens: the answer so far.
    """

    listener: Callable[[Delta], None]
    prompt: Prompt | None = None
    prepare: Callable[[], Prompt] | None = None
    size: int = 0
    after: "Future[Any] | None" = None
    timeout_s: float = 600.0
    state: State = State.WAITING
    cancelled: bool = False
    acquired: bool = False
    shift: int = 0
    tokens: list[int] = field(default_factory=list)
    created: float = field(default_factory=time.monotonic)

    def start(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Make ready to take tokens.

        Args:
            decode: returns the text of tokens, without control tokens.
        """
        self.admitted = time.monotonic()
        self.stream = TextStream(decode, self.asked.stops, lead=self.asked.lead)
        self.generator = self.asked.sampling.generator()

    @property
    def asked(self) -> Prompt:
        """The prompt of a job that has one."""
        assert self.prompt is not None
        return self.prompt

    @property
    def key(self) -> str | None:
        """Key of the adapter; None for the base model, and once the job has ended."""
        adapter = self.asked.adapter if self.state is not State.ENDED else None
        return adapter[0] if adapter else None

    @property
    def deadline(self) -> float:
        """When the answer is given up, on the clock of ``time.monotonic``."""
        return self.created + self.timeout_s

    @property
    def gone(self) -> bool:
        """Whether nobody wants the answer any more, or its time is up."""
        return self.cancelled or time.monotonic() > self.deadline

    def take(self, token: int, stop_ids: frozenset[int]) -> Delta:
        """Add a token and return what it adds to the answer."""
        self.tokens.append(token)
        if token in stop_ids:
            return self._end(self.stream.finish(), "stop")
        text = self.stream.push(token)
        if self.stream.stopped:
            return self._end(text, "stop")
        if len(self.tokens) >= self.asked.max_new_tokens:
            text += self.stream.finish()
            return self._end(text, "stop" if self.stream.stopped else "length")
        return Delta(text=text, tokens=len(self.tokens))

    def _end(self, text: str, reason: str) -> Delta:
        return Delta(text=text, tokens=len(self.tokens), finish_reason=reason)
