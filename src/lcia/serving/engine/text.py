"""From tokens to text, a piece at a time, and the strings that end an answer."""

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns the tokens of one answer into pieces of text whose sum is the decoded whole.

    A piece never ends within a character, and never holds the beginning of what may become a
    stop string.

    Args:
        tokenizer: a transformers tokenizer.
        stops: strings that end the answer; they and what follows are left out.

    Attributes:
        stopped: whether a stop string was met.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        # Text is decoded from _start, because the first token of a word may look different
        # without the one before it; up to _read it was given out or is held back.
        self._start = self._read = 0
        self._held = ""

    def push(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        self._ids.append(token)
        before, now = self._decode(self._start, self._read), self._decode(self._start, None)
        if len(now) <= len(before) or now.endswith(UNFINISHED):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._until_stop(now[len(before) :], last=False)

    def finish(self) -> str:
        """Return the text that was held back."""
        if self.stopped:
            return ""
        before, now = self._decode(self._start, self._read), self._decode(self._start, None)
        return self._until_stop(now[len(before) :], last=True)

    def _decode(self, start: int, end: int | None) -> str:
        text: str = self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
        return text

    def _until_stop(self, piece: str, *, last: bool) -> str:
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
