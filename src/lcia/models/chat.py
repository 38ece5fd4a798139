"""From messages to token ids, by the model's own chat template where it has one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lcia.data.sample import Message, Sample
from lcia.errors import ConfigError
from lcia.models.batches import answer_batch, mask_of, padded


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
    """Makes batches of prompts and answers the way a language model was instruction-tuned.

    A prompt longer than allowed loses tokens from its middle: instructions stand at a prompt's
    beginning or end, and the answer cue at its end.

    Args:
        tokenizer: a transformers tokenizer; without a chat template, turns are joined by blank
            lines and the answer starts on a new line.
        max_prompt_tokens: longest prompt in tokens.
        keep_logits: whether the model's ``forward`` takes ``logits_to_keep``.
    """

    def __init__(
        self, tokenizer: Any, *, max_prompt_tokens: int, keep_logits: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.keep_logits = keep_logits
        self._templated = bool(self._template_holder.chat_template)
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
        return Example(
            prompt_ids=prompt_ids, answer_ids=self._answer_ids(sample), truncated=truncated
        )

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return the training batch of encoded examples, as ``answer_batch`` describes it."""
        return answer_batch(
            [example.prompt_ids for example in examples],
            [example.answer_ids for example in examples],
            pad_id=self.tokenizer.pad_token_id,
            keep_logits=self.keep_logits,
        )

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> dict[str, Tensor]:
        """Return the batch that ``generate`` of the model takes, padded on the left."""
        rows = [self.encode_prompt(turns)[0] for turns in conversations]
        return {
            "input_ids": padded(rows, value=self.tokenizer.pad_token_id),
            "attention_mask": mask_of(rows),
        }

    def answers(self, output: Tensor, prompts: Mapping[str, Tensor]) -> list[str]:
        """Return the texts generated after a batch of prompts, without surrounding space."""
        ids = output[:, prompts["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _answer_ids(self, sample: Sample) -> list[int]:
        text = sample.answers[0] + self._turn_end
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def _template_holder(self) -> Any:
        """What has the chat template: the tokenizer, or a processor around it."""
        return self.tokenizer

    def _content(self, message: Message) -> Any:
        """Return a turn's content as the chat template takes it."""
        return self._text(message)

    def _text(self, message: Message) -> str:
        """Return a turn as text where there is no chat template."""
        if message.images:
            raise ConfigError(
                f"model: it reads text only, and '{message.images[0].path}' is a picture. Choose "
                "a vision-language model."
            )
        return message.content

    def _render(self, messages: Sequence[Message]) -> str:
        if not self._templated:
            return "\n\n".join(map(self._text, messages)) + "\n"
        return self._templated_text(messages, add_generation_prompt=True)

    def _templated_text(self, messages: Sequence[Message], **options: bool) -> str:
        turns = [{"role": turn.role, "content": self._content(turn)} for turn in messages]
        text = self._template_holder.apply_chat_template(turns, tokenize=False, **options)
        return str(text)

    def _find_turn_end(self) -> str:
        """Return what the template writes after an answer: the text that ends a turn."""
        eos = self.tokenizer.eos_token or ""
        if not self._templated:
            return eos
        asked = Message(role="user", content="q")
        answered = Message(role="assistant", content="a-n-s")
        return self._templated_text([asked, answered]).rpartition("a-n-s")[2].strip() or eos
