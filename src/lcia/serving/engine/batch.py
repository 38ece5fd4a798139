"""The rows that the model works on: prompts being read, answers growing by a token per step.

Prompts are read a piece a step, so that running answers go on.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from lcia.models import BaseModel
from lcia.models.batches import cache_argument
from lcia.models.visual import Projector
from lcia.serving.engine.arena import Arena
from lcia.serving.engine.bank import AdapterBank
from lcia.serving.engine.job import Job, State
from lcia.serving.engine.processor import prepare


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


PREFILL_TOKENS = 512
"""Prompt tokens read between two steps of the running answers."""


class Batch:
    """The model, its adapters and its cache; one thread uses it.

    It moves rows and numbers. Which job comes, goes on or ends is the ``Scheduler``'s to say.

    Args:
        base: the model; until ``detach`` nobody else may use it.
        max_adapters: adapters kept in memory.
        cache_bytes: keys and values of all rows together; None: no bound.
        projector: of a vision-language model; swapped for that of each prompt with images.

    Attributes:
        rows: the jobs whose answers grow, in the order of the cache's rows.
        reading: prompts being read, the ones whose turn it is first.
        vocabulary: how many tokens the model's embedding has.
        cells: tokens whose keys and values may be in memory; None: no bound.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        max_adapters: int,
        cache_bytes: int | None = None,
        projector: Projector | None = None,
    ) -> None:
        self._restore = prepare(base.model, leave=projector.parameters() if projector else ())
        self.bank = AdapterBank(base.model, max_loaded=max_adapters)
        self.rows: list[Job] = []
        self.reading: list[Prefill] = []
        self.vocabulary = base.model.get_input_embeddings().num_embeddings
        self._model = base.model
        self._projector = projector
        text = base.model.config.get_text_config()
        self.cells = None if cache_bytes is None else cache_bytes // token_bytes(base.model)
        self._arena = Arena(layers=text.num_hidden_layers, cells=self.cells)
        self._cache = cache_argument(base.model)
        takes = inspect.signature(base.model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    @property
    def intact(self) -> bool:
        """Whether the cache is as it was before the last step, should that have failed."""
        return self._arena.intact

    def acquire(self, job: Job) -> None:
        """Load the job's adapter and keep it; see ``AdapterBank.acquire``."""
        if job.asked.adapter is not None:
            self.bank.acquire(*job.asked.adapter)
            job.acquired = True

    def read_together(self, jobs: Sequence[Job]) -> None:
        """Let prompts be read, a piece per turn."""
        self.reading.append(Prefill(jobs, model=self._model))

    def has_room(self, placed: Sequence[Job], group: Sequence[Job]) -> bool:
        """Tell whether prompts can be read and answered beside the jobs that have a place.

        Args:
            placed: those jobs.
            group: whose prompts would be read together.
        """
        if self.cells is None:
            return True
        longest = max(job.asked.most_tokens for job in (*placed, *group))
        reading = sum(len(prefill.jobs) * prefill.width for prefill in self.reading)
        reading += len(group) * max(len(job.asked.ids) for job in group)
        return (len(placed) + len(group)) * longest + reading <= self.cells

    def split(self, prefill: Prefill) -> None:
        """Read the prompts of a failed reading again, in two halves."""
        jobs = [job for job in prefill.jobs if job.state is State.ADMITTED]
        self.reading = [other for other in self.reading if other is not prefill]
        for half in (jobs[: len(jobs) // 2], jobs[len(jobs) // 2 :]):
            if half:
                self.read_together(half)

    def read(self, prefill: Prefill) -> torch.Tensor | None:
        """Read the next piece of prompts; whoever else is being read has the next turn.

        Returns:
            The logits of each row's first token, shape (rows, vocabulary); None before the end.
        """
        adapter = prefill.jobs[0].asked.adapter
        if self._projector is not None and prefill.jobs[0].asked.images:
            self._projector.load(adapter[1] if adapter is not None else None)
        inputs = prefill.next_inputs(PREFILL_TOKENS)
        logits = self.forward(prefill.jobs, cache=prefill.cache, **inputs)
        self.reading.remove(prefill)
        if prefill.finished:
            return logits
        self.reading.append(prefill)
        return None

    def join(self, prefill: Prefill, jobs: Sequence[Job]) -> None:
        """Let jobs whose prompts have been read grow with the others."""
        rows = [prefill.jobs.index(job) for job in jobs]
        self._arena.join(prefill.cache, prefill.lengths, rows)
        self.rows += jobs

    def generate(self) -> torch.Tensor:
        """Return the logits of the next token of all rows, shape (rows, vocabulary)."""
        device = self._model.device
        self._arena.make_room()
        places = zip(self._arena.lengths, self.rows, strict=True)
        positions = [[place + job.shift] for place, job in places]
        logits = self.forward(
            self.rows,
            input_ids=torch.tensor([[job.tokens[-1]] for job in self.rows], device=device),
            attention_mask=self._arena.mask(device).long(),
            position_ids=torch.tensor(positions, device=device),
            cache=self._arena,
        )
        self._arena.advance()
        return logits

    def forward(self, jobs: Sequence[Job], *, cache: Any, **inputs: Any) -> torch.Tensor:
        """Return the logits of each row's next token, shape (rows, vocabulary)."""
        self.bank.select([job.key for job in jobs])
        inputs[self._cache] = cache
        output = self._model(**inputs, use_cache=True, **self._options)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def remove(self, job: Job) -> None:
        """Free whatever an ended job has: its row and its adapter."""
        if job in self.rows:
            row = self.rows.index(job)
            self._arena.drop(row)
            self.rows[row] = self.rows[-1]
            self.rows.pop()
        self.reading = [
            prefill
            for prefill in self.reading
            if any(other.state is not State.ENDED for other in prefill.jobs)
        ]
        if job.acquired and job.asked.adapter is not None:
            job.acquired = False
            self.bank.release(job.asked.adapter[0])

    def detach(self) -> None:
        """Leave the model as it came."""
        self.bank.detach()
        self._restore()
        self._restore = lambda: None

    def clear(self) -> None:
        """Free everything but the adapters, which stay in memory unused."""
        self.rows, self.reading = [], []
        self._arena.clear()
        self.bank.release_all()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def token_bytes(model: Any) -> int:
    """Return the bytes that one token's keys and values take in all layers of a model."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * model.dtype.itemsize)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device, or in the machine for the processor's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
