"""Answers in OpenAI's words: whole, or as the pieces of a stream."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from lcia.serving.http.routing import Choice

DONE = b"data: [DONE]\n\n"


LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""What some readers take for the end of a line; JSON escapes the other such signs anyway."""


def event(body: Any) -> bytes:
    """Return a server-sent event; its data are one line by every reader's count."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.translate(LINE_ENDS).encode() + b"\n\n"


@dataclass(frozen=True, kw_only=True)
class Shape(ABC):
    """How one endpoint writes its answers.

    Attributes:
        model: as the client asked for it.
        choice: what answers, told in the field ``lcia``.
        prompt_tokens: tokens of the prompt.
        index: of the prompt among those of one request.
    """

    model: str
    choice: Choice
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    index: int = 0

    prefix = ""
    whole_object = ""
    piece_object = ""

    @property
    def full_id(self) -> str:
        """What clients know the answer by."""
        return f"{self.prefix}-{self.id}"

    @property
    def receipt_id(self) -> str:
        """What the answer's receipt is known by: one request may have several prompts."""
        return self.full_id if self.index == 0 else f"{self.full_id}-{self.index}"

    def whole(self, text: str, *, tokens: int, finish_reason: str | None) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        choice = {**self._whole(text, finish_reason), "index": self.index}
        return {
            **self._frame(self.whole_object, [choice]),
            "usage": self.usage(tokens),
            "lcia": self.choice.to_json(),
        }

    def first(self) -> dict[str, Any]:
        """Return the first piece of a stream: no text yet, but what answers."""
        frame = self._frame(self.piece_object, [self._part("", None, first=True)])
        return {**frame, "lcia": self.choice.to_json()}

    def piece(self, text: str, *, finish_reason: str | None = None) -> dict[str, Any]:
        """Return a piece of a stream: text, or in the last one why it ends."""
        return self._frame(self.piece_object, [self._part(text, finish_reason, first=False)])

    def last(self, tokens: int) -> dict[str, Any]:
        """Return the piece with the number of tokens, for clients that asked for it."""
        return {**self._frame(self.piece_object, []), "usage": self.usage(tokens)}

    def usage(self, tokens: int) -> dict[str, int]:
        """Return the number of tokens."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }

    def _part(self, text: str, finish_reason: str | None, *, first: bool) -> dict[str, Any]:
        return {**self._piece(text, finish_reason, first=first), "index": self.index}

    def _frame(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self.full_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"lcia-version-{self.choice.version}",
            "choices": choices,
        }

    @abstractmethod
    def _whole(self, text: str, finish_reason: str | None) -> dict[str, Any]: ...

    @abstractmethod
    def _piece(self, text: str, finish_reason: str | None, *, first: bool) -> dict[str, Any]: ...


class ChatShape(Shape):
    """``/v1/chat/completions``."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    piece_object = "chat.completion.chunk"

    def _whole(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": None, "finish_reason": finish_reason}

    def _piece(self, text: str, finish_reason: str | None, *, first: bool) -> dict[str, Any]:
        delta: dict[str, Any] = {"content": text} if text or first else {}
        if first:
            delta = {"role": "assistant", **delta}
        return {"delta": delta, "logprobs": None, "finish_reason": finish_reason}


class CompletionShape(Shape):
    """``/v1/completions``."""

    prefix = "cmpl"
    whole_object = piece_object = "text_completion"

    def _whole(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"text": text, "logprobs": None, "finish_reason": finish_reason}

    def _piece(self, text: str, finish_reason: str | None, *, first: bool) -> dict[str, Any]:
        return self._whole(text, finish_reason)
