"""Prompts on their way into the batch, a piece per step, so that running answers go on."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from lcia.serving.job import Job


class Prefill:
    """Prompts that are read together.

    Args:
        jobs: whose prompts; padded on the left to the longest.
        pad_id: the padding token.
        device: of the model.
    """

    def __init__(self, jobs: Sequence[Job], *, pad_id: int, device: Any) -> None:
        self.jobs = list(jobs)
        self.lengths = [len(job.prompt.ids) for job in jobs]
        self.cache = DynamicCache()
        self.done = 0
        self.width = max(self.lengths)
        rows = zip(self.jobs, self.lengths, strict=True)
        ids = [[pad_id] * (self.width - n) + list(job.prompt.ids) for job, n in rows]
        self._ids = torch.tensor(ids, device=device)
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        self._mask = torch.arange(self.width, device=device) >= self.width - lengths
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)

    @property
    def finished(self) -> bool:
        """Whether all of the prompts has been read."""
        return self.done == self.width

    def next_inputs(self, tokens: int) -> dict[str, Any]:
        """Return the model's arguments for the next ``tokens`` tokens at most."""
        end = min(self.width, self.done + max(1, tokens // len(self.jobs)))
        part = slice(self.done, end)
        self.done = end
        return {
            "input_ids": self._ids[:, part],
            "attention_mask": self._mask[:, :end].long(),
            "position_ids": self._positions[:, part],
            "past_key_values": self.cache,
        }
