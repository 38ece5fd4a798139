"""One answer being generated: what was asked, and how far it is."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcia.errors import LciaError
from lcia.serving.engine.sampling import Sampling
from lcia.serving.engine.text import TextStream


@dataclass(frozen=True, kw_only=True)
class Delta:
    """News of an answer.

    Attributes:
        text: what was added.
        tokens: how many tokens were generated so far, the one that ends the answer included.
        finish_reason: ``stop`` or ``length`` with the last one, else None.
        error: why the answer cannot go on; with the last one only.
    """

    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    error: LciaError | None = None

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None or self.error is not None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What to answer.

    Attributes:
        ids: token ids of the prompt.
        pictures: what the model takes besides token ids, from its processor; such a prompt is read
            in one piece.
        adapter: key and directory of the adapter; None for the base model.
        max_new_tokens: longest answer in tokens.
        sampling: how tokens are chosen.
        stops: strings that end the answer.
        timeout_s: seconds until the answer is given up.
    """

    ids: tuple[int, ...]
    pictures: Mapping[str, Any] = field(default_factory=dict)
    adapter: tuple[str, Path] | None = None
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    timeout_s: float = 600.0


@dataclass(eq=False)
class Job:
    """A prompt in the engine; changed by the engine's thread only, but for ``cancelled``.

    Attributes:
        prompt: what to answer.
        listener: called with every delta.
        cancelled: set by whoever no longer wants the answer.
        acquired: whether the job keeps its adapter in memory.
        shift: what is added to a token's place to get its position: pictures take fewer positions
            than tokens where positions have three dimensions.
    """

    prompt: Prompt
    listener: Callable[[Delta], None]
    cancelled: bool = False
    acquired: bool = False
    shift: int = 0
    tokens: list[int] = field(default_factory=list)
    created: float = field(default_factory=time.monotonic)

    def start(self, tokenizer: Any) -> None:
        """Make ready to take tokens."""
        self.admitted = time.monotonic()
        self.stream = TextStream(tokenizer, self.prompt.stops)
        self.generator = self.prompt.sampling.generator()

    @property
    def key(self) -> str | None:
        """Key of the adapter; None for the base model."""
        return self.prompt.adapter[0] if self.prompt.adapter else None

    @property
    def overdue(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() - self.created > self.prompt.timeout_s

    def take(self, token: int, stop_ids: frozenset[int]) -> Delta:
        """Add a token and return what it adds to the answer."""
        self.tokens.append(token)
        if token in stop_ids:
            return self._end(self.stream.finish(), "stop")
        text = self.stream.push(token)
        if self.stream.stopped:
            return self._end(text, "stop")
        if len(self.tokens) >= self.prompt.max_new_tokens:
            text += self.stream.finish()
            return self._end(text, "stop" if self.stream.stopped else "length")
        return Delta(text=text, tokens=len(self.tokens))

    def _end(self, text: str, reason: str) -> Delta:
        return Delta(text=text, tokens=len(self.tokens), finish_reason=reason)
