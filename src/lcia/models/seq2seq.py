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

    def prompts(self, conversations: Sequence[Sequence[Message]]) -> dict[str, Tensor]:
        """Return the batch that ``generate`` of the model takes, padded on the right."""
        return self._batch([self.encode_prompt(turns)[0] for turns in conversations])

    def answers(self, output: Tensor, prompts: Mapping[str, Tensor]) -> list[str]:
        """Return the generated texts, without surrounding space."""
        texts = self.tokenizer.batch_decode(output, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _batch(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        return {
            "input_ids": padded(rows, value=self.tokenizer.pad_token_id, left=False),
            "attention_mask": mask_of(rows, left=False),
        }
