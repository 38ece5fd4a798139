"""Rows of token ids to padded batches; the beginning that prompts share is read once for all."""

import inspect
from collections.abc import Mapping, Sequence
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


LEAST = 16
"""Shorter beginnings are not worth a forward pass of their own."""


def cache_argument(model: Any) -> str:
    """Return what a model calls its cache: newer transformers say ``cache``."""
    if hasattr(model, "get_base_model"):  # peft's passes everything on
        model = model.get_base_model()
    names = inspect.signature(type(model).forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def shares_prefixes(model: Any) -> bool:
    """Tell whether a model is a decoder of text that keeps keys and values of all tokens."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    config = model.config
    if config.is_encoder_decoder or config.get_text_config() is not config:
        return False
    layers = DynamicCache(config=config).layers
    recurrent = getattr(model, "_is_stateful", False)
    return not recurrent and bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def common_length(rows: Sequence[list[int]]) -> int:
    """Return how many first tokens all rows share, leaving each at least one more.

    0 if they are fewer than ``LEAST``, or there is but one row.
    """
    if len(rows) < 2:
        return 0
    first, last = min(rows), max(rows)  # in the order of dictionaries: what lies between shares it
    most = min(map(len, rows)) - 1
    differs = (i for i in range(most) if first[i] != last[i])
    length = max(next(differs, most), 0)
    return length if length >= LEAST else 0


def behind_prefix(batch: Mapping[str, Tensor], *, pad_id: int) -> tuple[dict[str, Tensor], int]:
    """Return a batch with its padding behind the common beginning, and that one's length.

    Args:
        batch: ``input_ids`` and ``attention_mask`` of shape (rows, width), padded on the left.
        pad_id: the padding token.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    real = [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
    length = common_length(real)
    rests = [row[length:] for row in real]
    beginning = torch.tensor(real[0][:length]).to(ids).expand(len(real), -1)
    moved = {
        "input_ids": torch.cat([beginning, padded(rests, value=pad_id).to(ids)], dim=1),
        "attention_mask": torch.cat([torch.ones_like(beginning), mask_of(rests).to(mask)], dim=1),
    }
    return moved, length


def read_prefix(model: Any, ids: Tensor, adapters: Sequence[str], **options: Any) -> dict[str, Any]:
    """Return the cache of a beginning for every row of a batch, as an argument of ``generate``.

    The beginning is read once with each adapter of the batch. Only for models that keep keys and
    values of all tokens, and nothing else (``shares_prefixes``).

    Args:
        model: a causal language model, with or without adapters on it.
        ids: token ids of the beginning, shape (length,).
        adapters: peft's name of each row's adapter.
        **options: of the model's ``forward``.
    """
    from transformers import DynamicCache

    chosen = sorted(set(adapters))
    if hasattr(model, "peft_config"):
        options["adapter_names"] = chosen
    cache = DynamicCache()
    argument = {cache_argument(model): cache}
    model(input_ids=ids.expand(len(chosen), -1), use_cache=True, **argument, **options)
    cache.batch_select_indices(torch.tensor([chosen.index(name) for name in adapters]))
    return argument
