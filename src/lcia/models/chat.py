"""From messages to token ids, by the model's own chat template where it has one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lcia.data.sample import Message, Sample


@dataclass(frozen=True, kw_only=True)
class Example:
    """A tokenised training example.

    Attributes:
        prompt_ids: token ids up to where the answer starts.
        answer_ids: token ids of the answer with the end of the turn; the loss is on these.
        truncated: whether tokens were cut out of the prompt.
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    truncated: bool


class ChatFormat:
    """Tokenises prompts and answers the way the model was instruction-tuned.

    A prompt longer than allowed loses tokens from its middle: instructions stand at a prompt's
    beginning or end, and the answer cue at its end.

    Args:
        tokenizer: a transformers tokenizer; without a chat template, turns are joined by blank
            lines and the answer starts on a new line.
        max_prompt_tokens: longest prompt in tokens.
    """

    def __init__(self, tokenizer: Any, *, max_prompt_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self._templated = bool(tokenizer.chat_template)
        self._turn_end = self._find_turn_end()

    @property
    def stop_ids(self) -> list[int]:
        """Token ids that end an answer: the tokenizer's end and the template's end of turn."""
        ends = [self.tokenizer.eos_token_id]
        turn_end = self.tokenizer(self._turn_end, add_special_tokens=False)["input_ids"]
        if len(turn_end) == 1:
            ends.append(turn_end[0])
        return sorted({token for token in ends if token is not None})

    def encode_prompt(self, messages: Sequence[Message]) -> tuple[list[int], bool]:
        """Return the token ids of a prompt up to where the answer starts, and if it was cut."""
        text = self._render(messages)
        ids = self.tokenizer(text, add_special_tokens=not self._templated)["input_ids"]
        if len(ids) <= self.max_prompt_tokens:
            return ids, False
        head = self.max_prompt_tokens // 2
        tail = self.max_prompt_tokens - head
        return ids[:head] + ids[-tail:], True

    def encode_example(self, sample: Sample) -> Example:
        """Return a sample's prompt and first answer as token ids."""
        prompt_ids, truncated = self.encode_prompt(sample.messages)
        answer = self.tokenizer(sample.answers[0] + self._turn_end, add_special_tokens=False)
        return Example(prompt_ids=prompt_ids, answer_ids=answer["input_ids"], truncated=truncated)

    def _render(self, messages: Sequence[Message]) -> str:
        if not self._templated:
            return "\n\n".join(message.content for message in messages) + "\n"
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return str(
            self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        )

    def _find_turn_end(self) -> str:
        """Return what the template writes after an answer: the text that ends a turn."""
        eos = self.tokenizer.eos_token or ""
        if not self._templated:
            return eos
        probe = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a-n-s"}]
        text = str(self.tokenizer.apply_chat_template(probe, tokenize=False))
        return text.rpartition("a-n-s")[2].strip() or eos
