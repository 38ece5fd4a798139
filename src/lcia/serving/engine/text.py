"""From tokens to text, a piece at a time, and the strings that end an answer."""

from collections.abc import Callable, Sequence

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
