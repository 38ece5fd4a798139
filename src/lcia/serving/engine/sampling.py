"""Choosing the next token, each row by its own settings."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from lcia.errors import ConfigError, LciaError

CANDIDATES = 256
"""Most likely tokens looked at first; all are sorted only where these miss ``top_p``."""

GREEDY_BELOW = 1e-5
"""Temperatures below this take the most likely token: dividing by them leaves float32's range."""


class NotFiniteError(LciaError, ArithmeticError):
    """The model's output for one row holds no number to choose by."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is chosen.

    Attributes:
        temperature: at least 0; 0, and anything below ``GREEDY_BELOW``, takes the most likely
            token.
        top_p: in [0, 1]; only the most likely tokens that reach this probability together, and
            always the most likely one.
        seed: the same seed, prompt and weights give the same answer; None draws one.

    Raises:
        ConfigError: a value is not in its range, or not a number.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature is {self.temperature}; expected a number from 0 on.")
        if not 0 <= self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; expected a number from 0 to 1.")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature < GREEDY_BELOW

    def generator(self) -> torch.Generator:
        """Return a fresh source of random numbers for one answer."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def peaks(logits: torch.Tensor) -> list[tuple[float, int]]:
    """Return each row's largest logit and its token; what is not finite shows in the former.

    Args:
        logits: shape (rows, vocabulary).
    """
    values, tokens = logits.max(-1)  # NaN is larger than anything
    return list(zip(values.tolist(), tokens.tolist(), strict=True))


def choose(
    logits: torch.Tensor, row: int, peak: tuple[float, int], setting: Sampling, generator: Any
) -> int:
    """Return the next token of one row.

    Args:
        logits: shape (rows, vocabulary); a greedy row is not looked at again.
        row: which one.
        peak: its largest logit and that token.
        setting: how to choose.
        generator: random numbers; not used by greedy rows.

    Raises:
        NotFiniteError: the row holds NaN or infinity, or nothing but minus infinity.
    """
    largest, token = peak
    if not math.isfinite(largest):
        raise NotFiniteError(f"The model's largest logit is {largest}; there is no next token.")
    if setting.greedy:
        return token
    return _draw(logits[row].float() - largest, setting, generator)


def _draw(logits: torch.Tensor, setting: Sampling, generator: torch.Generator) -> int:
    """Draw by inverting the cumulative distribution, so that a seed means the same anywhere."""
    probabilities = torch.softmax(logits / setting.temperature, dim=-1)
    if setting.top_p < 1:
        likely, ids = probabilities.topk(min(CANDIDATES, len(probabilities)))
        if float(likely.sum()) < setting.top_p:
            likely, ids = probabilities.sort(descending=True)
        sums = likely.cumsum(0)
        # top_p itself may be smaller than any float32.
        kept = max(1, int((sums - likely < setting.top_p).sum()))
        sums, ids = sums[:kept], ids[:kept]
    else:
        sums, ids = probabilities.cumsum(0), None
    point = torch.rand((), generator=generator).to(sums.device) * sums[-1]
    position = min(int(torch.searchsorted(sums, point, right=True)), len(sums) - 1)
    return position if ids is None else int(ids[position])
