"""Choosing the next token, each row by its own settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

CANDIDATES = 256
"""Most likely tokens looked at first; all are sorted only where these miss ``top_p``."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is chosen.

    Attributes:
        temperature: at least 0; 0 takes the most likely token.
        top_p: in (0, 1]; only the most likely tokens that reach this probability together.
        seed: the same seed, prompt and weights give the same answer; None draws one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def generator(self) -> torch.Generator:
        """Return a fresh source of random numbers for one answer."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def choose(
    logits: torch.Tensor, settings: Sequence[Sampling], generators: Sequence[Any]
) -> list[int]:
    """Return the next token of each row.

    Args:
        logits: shape (rows, vocabulary).
        settings: one per row.
        generators: one per row; those of greedy rows are not used.
    """
    tokens: list[int] = logits.argmax(-1).tolist()
    for row, (setting, generator) in enumerate(zip(settings, generators, strict=True)):
        if setting.temperature > 0:
            tokens[row] = _draw(logits[row], setting, generator)
    return tokens


def _draw(logits: torch.Tensor, setting: Sampling, generator: torch.Generator) -> int:
    """Draw by inverting the cumulative distribution, so that a seed means the same anywhere."""
    probabilities = torch.softmax(logits.float() / setting.temperature, dim=-1)
    if setting.top_p < 1:
        likely, ids = probabilities.topk(min(CANDIDATES, len(probabilities)))
        if float(likely.sum()) < setting.top_p:
            likely, ids = probabilities.sort(descending=True)
        sums = likely.cumsum(0)
        kept = int((sums - likely < setting.top_p).sum())
        sums, ids = sums[:kept], ids[:kept]
    else:
        sums, ids = probabilities.cumsum(0), None
    point = torch.rand((), generator=generator).to(sums.device) * sums[-1]
    position = min(int(torch.searchsorted(sums, point, right=True)), len(sums) - 1)
    return position if ids is None else int(ids[position])
