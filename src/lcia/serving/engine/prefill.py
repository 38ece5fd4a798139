"""Prompts on their way into the batch, a piece per step, so that running answers go on."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from lcia.serving.engine.job import Job


class Prefill:
    """Prompts that are read together.

    Args:
        jobs: whose prompts; padded on the left to the longest. One with images comes alone.
        model: reads them.
    """

    def __init__(self, jobs: Sequence[Job], *, model: Any) -> None:
        self.jobs = list(jobs)
        self.lengths = [len(job.asked.ids) for job in jobs]
        self.width = max(self.lengths)
        self.done = 0
        self._model = model

    @property
    def finished(self) -> bool:
        """Whether all of the prompts has been read."""
        return self.done == self.width

    def next_inputs(self, tokens: int) -> dict[str, Any]:
        """Return the model's arguments, but the cache, for the next ``tokens`` tokens at most."""
        if not self.done:
            self._begin()
        end = min(self.width, self.done + max(1, tokens // len(self.jobs)))
        if self._images:
            end = self.width  # an image's features go to all of its tokens at once
        part = slice(self.done, end)
        self.done = end
        return {
            "input_ids": self._ids[:, part],
            "attention_mask": self._mask[:, :end].long(),
            "position_ids": self._positions[..., part],
            **self._images,
        }

    def _begin(self) -> None:
        """Put the prompts where the model is."""
        model, device = self._model, self._model.device
        self.cache = DynamicCache()
        # What stands in the padding is never looked at; 0 is a token that every model has.
        rows = zip(self.jobs, self.lengths, strict=True)
        ids = [[0] * (self.width - n) + list(job.asked.ids) for job, n in rows]
        self._ids = torch.tensor(ids, device=device)
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        self._mask = torch.arange(self.width, device=device) >= self.width - lengths
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._images = {
            name: value.to(device, model.dtype if value.is_floating_point() else None)
            for name, value in self.jobs[0].asked.images.items()
        }
        find_positions = getattr(model.base_model, "get_rope_index", None)
        if self._images and find_positions is not None:
            self._place(find_positions)

    def _place(self, find_positions: Any) -> None:
        """Take three-dimensional positions from a model that has them."""
        known = inspect.signature(find_positions).parameters
        images = {name: value for name, value in self._images.items() if name in known}
        self._positions, shift = find_positions(
            self._ids, attention_mask=self._mask.long(), **images
        )
        self.jobs[0].shift = int(shift)
