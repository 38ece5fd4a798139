"""Batches for training on answers only."""

from collections.abc import Sequence
from typing import Any

import torch

from lcia.models.chat import Example

IGNORED = -100


class AnswerCollator:
    """Pads examples on the left, so that all answers end at the last position.

    The answers then lie within the last ``k`` positions, and the model is told to compute logits
    for these alone (``logits_to_keep``): with a large vocabulary and short answers, the output
    layer is a good part of a step.

    Args:
        pad_id: the padding token; masked by position, since it may equal the end token.
        keep_logits: whether the model's ``forward`` takes ``logits_to_keep``.
    """

    def __init__(self, *, pad_id: int, keep_logits: bool) -> None:
        self.pad_id = pad_id
        self.keep_logits = keep_logits

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return ``input_ids`` and ``attention_mask`` of shape (batch, width), and ``labels``.

        ``labels`` has shape (batch, k) with ``logits_to_keep=k``, else (batch, width); positions
        outside the answer hold -100.
        """
        width = max(len(e.prompt_ids) + len(e.answer_ids) for e in examples)
        # One position before the longest answer predicts its first token.
        kept = max(len(e.answer_ids) for e in examples) + 1 if self.keep_logits else width
        ids = torch.full((len(examples), width), self.pad_id)
        mask = torch.zeros((len(examples), width), dtype=torch.long)
        labels = torch.full((len(examples), kept), IGNORED)
        for row, example in enumerate(examples):
            tokens = torch.tensor(example.prompt_ids + example.answer_ids)
            ids[row, width - len(tokens) :] = tokens
            mask[row, width - len(tokens) :] = 1
            labels[row, kept - len(example.answer_ids) :] = torch.tensor(example.answer_ids)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {**batch, "logits_to_keep": kept} if self.keep_logits else batch
