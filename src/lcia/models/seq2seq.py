"""Encoder-decoder models: the prompt is read, the answer is written."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lcia.data.sample import Message
from lcia.models.batches import IGNORED, mask_of, padded
from lcia.models.chat import ChatFormat, Example


class Seq2SeqFormat(ChatFormat):
    """Makes batches for an encoder-decoder model, such as T5: prompts in, answers as labels."""

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return ``input_ids``, ``attention_mask`` and ``labels``, padded on the right."""
        answers = [example.answer_ids for example in examples]
        return {
            **self._batch([example.prompt_ids for example in examples]),
            "labels": padded(answers, value=IGNORED, left=False),
        }

    def prompts(
        self, conversations: Sequence[Sequence[Message]], *, answer_tokens: int = 0
    ) -> dict[str, Tensor]:
        """Return the batch that ``generate`` of the model takes, padded on the right."""
        rows = [self.encode_prompt(c, answer_tokens=answer_tokens)[0] for c in conversations]
        return self._batch(rows)

    def answer_start(self, prompts: Mapping[str, Tensor]) -> int:
        """Return 0: prompts are no part of ``generate``'s output."""
        return 0

    def _prompt_ids(self, text: str) -> list[int]:
        # The encoder was trained on texts with their end token.
        return [*super()._prompt_ids(text), *self.encoder.after]

    def _batch(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        return {
            "input_ids": padded(rows, value=self.pad_id, left=False),
            "attention_mask": mask_of(rows, left=False),
        }
