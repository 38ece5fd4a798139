"""Text as text: what a user writes never becomes a control token, what a template writes does."""

import json
import re
import secrets
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

# No text of a user holds these: they are drawn anew in every process.
_NONCE = secrets.token_hex(8)
AT_ONCE = 1000
"""Texts that are tokenised at once: of every token more is told than its id."""


class TextEncoder:
    """Encodes rendered prompts, in which the contents of messages are told from the template.

    ``protect`` marks what would be read as a control token in a content; ``encode`` reads it as
    the characters it is. Everything else is encoded exactly as the tokenizer does.

    Args:
        tokenizer: a transformers tokenizer.
        vocabulary: rows of the model's embedding; tokens beyond are text, too. None: unknown.
        turns: further tokens that a template ends or begins turns with, whether or not the
            tokenizer calls them special.

    Attributes:
        control: control token to its id.
        before: ids that the tokenizer puts before a text that no template made.
        after: ids that it puts behind one.
    """

    def __init__(
        self, tokenizer: Any, *, vocabulary: int | None = None, turns: Collection[str] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.control = {
            str(token): number
            for number, token in tokenizer.added_tokens_decoder.items()
            if (token.special or str(token) in turns or number >= (vocabulary or number + 1))
            and str(token)
            and not (token.special and self._is_text(str(token), number))
        }
        longest_first = sorted(self.control, key=len, reverse=True)
        self._names = longest_first
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._mark = re.compile(f"\ue000{_NONCE}([0-9a-f]*)\ue001")
        (bare,) = self._plain(["a"])
        whole = list(tokenizer("a")["input_ids"])
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), len(whole))
        self.before, self.after = whole[:start], whole[start + len(bare) :]

    def protect(self, text: str) -> str:
        """Return a content with a mark in the place of every control token that stands in it."""

        def mark(match: re.Match[str]) -> str:
            return f"\ue000{_NONCE}{self._names.index(match.group()):x}\ue001"

        marked = self._pattern.sub(mark, text)
        if marked == text and self._hides_control(text):
            marked += f"\ue000{_NONCE}\ue001"
        return marked

    def broken(self, text: str) -> str:
        """Return a content with a space in every control token, for who tokenises on its own."""
        return self._pattern.sub(lambda m: f"{m.group()[0]} {m.group()[1:]}", text)

    def restore(self, text: str) -> str:
        """Return a text with its control tokens in the place of the marks."""
        return self._mark.sub(lambda m: self._names[int(m[1], 16)] if m[1] else "", text)

    def first_control(self, text: str) -> re.Match[str] | None:
        """Return where the first control token of a template's text is."""
        return self._pattern.search(text)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; marked control tokens in it are read as characters."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of many texts, each as ``encode`` does; all cores share them."""
        marked = [self._mark.search(text) is not None for text in texts]
        plain = iter(self._plain([t for t, mark in zip(texts, marked, strict=True) if not mark]))
        return [
            self._literal(text) if mark else next(plain)
            for text, mark in zip(texts, marked, strict=True)
        ]

    def _literal(self, text: str) -> list[int]:
        """Return the token ids of a text with marks."""
        if self._backend is None:
            return self._piecewise(text)
        literal = self._pattern.sub(lambda match: _stand_in(self.control[match.group()]), text)
        stand_ins, shadow = self._shadow
        ids = shadow.encode(self.restore(literal), add_special_tokens=False).ids
        return [stand_ins.get(i, i) for i in ids if not self._slipped_through(i)]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = []
        for start in range(0, len(texts), AT_ONCE):
            piece = texts[start : start + AT_ONCE]
            rows += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return rows

    def _is_text(self, token: str, number: int) -> bool:
        """Whether ordinary text yields the token, as where a letter serves as padding."""
        if self._backend is None or type(self._backend.model).__name__ != "BPE":
            return False
        options = {"add_special_tokens": False, "split_special_tokens": True}
        found = self.tokenizer(token, **options)["input_ids"]
        return list(found) == [number]

    def _hides_control(self, text: str) -> bool:
        """Whether normalising a text makes control tokens of it."""
        if not self._normalised:
            return False
        normal = self._backend.normalizer.normalize_str(text)
        return any(name in normal for name in self._normalised)

    @cached_property
    def _normalised(self) -> tuple[str, ...]:
        """Control tokens that are looked for in normalised text."""
        if self._backend is None or self._backend.normalizer is None:
            return ()
        tokens = self.tokenizer.added_tokens_decoder.values()
        return tuple(str(t) for t in tokens if t.normalized and str(t) in self.control)

    @cached_property
    def _shadow(self) -> tuple[dict[int, int], Any]:
        """Return ids of stand-ins to those of control tokens, and the tokenizer that reads them.

        It is the tokenizer, but control tokens are characters, and stand-ins take their place.
        """
        from tokenizers import AddedToken, Tokenizer

        state = json.loads(self._backend.to_str())
        state |= {"truncation": None, "padding": None}
        for entry in state["added_tokens"]:
            entry["special"] = entry["content"] in self.control
        if state["model"]["type"] == "Unigram":  # a likely piece would be found in any text
            for number in self.control.values():
                if number < len(state["model"]["vocab"]):
                    state["model"]["vocab"][number][1] = -1e6
        shadow: Any = Tokenizer.from_str(json.dumps(state))
        shadow.encode_special_tokens = True
        flags = self.tokenizer.added_tokens_decoder
        numbers = {}
        for number in self.control.values():
            token, like = _stand_in(number), flags[number]
            options = {"single_word": like.single_word, "lstrip": like.lstrip}
            options |= {"rstrip": like.rstrip, "normalized": False, "special": False}
            shadow.add_tokens([AddedToken(token, **options)])
            numbers[shadow.token_to_id(token)] = number
        return numbers, shadow

    def _slipped_through(self, number: int) -> bool:
        """Whether characters became a control token after all, by a tokenizer's vocabulary."""
        return number in self._numbers and number != self.tokenizer.unk_token_id

    @cached_property
    def _numbers(self) -> frozenset[int]:
        return frozenset(self.control.values())

    def _piecewise(self, text: str) -> list[int]:
        """Encode with a tokenizer that is written in Python: what lies between control tokens."""
        ids: list[int] = []
        end = 0
        options = {"add_special_tokens": False, "split_special_tokens": True}
        for match in [*self._pattern.finditer(text), None]:
            piece = self.restore(text[end : match.start() if match else None])
            found = self.tokenizer(piece, **options)["input_ids"] if piece else []
            ids += [number for number in found if not self._slipped_through(number)]
            if match:
                ids.append(self.control[match.group()])
                end = match.end()
        return ids


def _stand_in(number: int) -> str:
    return f"\ue002{_NONCE}{number:x}\ue003"
