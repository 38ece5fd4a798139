"""Rows of token ids to padded batches, for training on answers only."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""Label of positions that the loss leaves out."""


def padded(rows: Sequence[Sequence[int]], *, value: int, left: bool = True) -> Tensor:
    """Return rows of different length as one tensor of shape (rows, longest)."""
    width = max(map(len, rows))
    batch = torch.full((len(rows), width), value)
    for i, row in enumerate(rows):
        batch[i, slice(width - len(row), None) if left else slice(len(row))] = torch.tensor(row)
    return batch


def mask_of(rows: Sequence[Sequence[int]], *, left: bool = True) -> Tensor:
    """Return 1 where ``padded`` puts a token, else 0: the padding token may also be a real one."""
    return padded([[1] * len(row) for row in rows], value=0, left=left)


def answer_batch(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    pad_id: int,
    keep_logits: bool,
) -> dict[str, Any]:
    """Return a training batch, padded on the left, so that all answers end at the last position.

    The answers then lie within the last ``k`` positions, and the model is told to compute logits
    for these alone (``logits_to_keep``): with a large vocabulary and short answers, the output
    layer is a good part of a step.

    Args:
        prompts: token ids up to where the answer starts.
        answers: token ids of the answers; the loss is on these.
        pad_id: the padding token.
        keep_logits: whether the model's ``forward`` takes ``logits_to_keep``.

    Returns:
        ``input_ids`` and ``attention_mask`` of shape (batch, width), and ``labels`` of shape
        (batch, k) with ``logits_to_keep=k``, else (batch, width); positions outside the answer
        hold -100.
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    # One position before the longest answer predicts its first token.
    kept = max(map(len, answers)) + 1 if keep_logits else max(map(len, rows))
    filler = [IGNORED] * kept
    labels = padded([[*filler, *answer][-kept:] for answer in answers], value=IGNORED)
    batch = {
        "input_ids": padded(rows, value=pad_id),
        "attention_mask": mask_of(rows),
        "labels": labels,
    }
    return {**batch, "logits_to_keep": kept} if keep_logits else batch
