"""A balance rule that remembers a share of the training, whatever its length."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lcia.ema.balance import Rule, Sums
from lcia.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Horizon(Rule):
    """The average remembers a share of the task's steps: 1 - beta = 1 / (share max_steps).

    An average with constant beta remembers about 1 / (1 - beta) steps. Which beta protects what
    came before therefore depends on the length of the task; this rule asks for the horizon
    H = max(share max_steps, 1) instead. At update t, counted from 1,

        1 - beta_t = max(1 / (t + 1), 1 / H).

    The first term is the warm-up, beta = 1 - 1/n with n = t + 1 values seen, the starting one
    among them: until t + 1 = H, theta* is the plain mean of the starting theta* and all theta
    since. By induction, with m the mean of n values, (1 - 1/(n+1)) m + theta/(n+1) is the mean of
    n + 1. Without it the starting value would keep the weight (1 - 1/H)^t, far more than any
    value after it. With ``share`` 1 the result is the mean over the whole task. All tensors move
    alike, no gradients are needed, and no step falls back.

    Args:
        share: share of the task's optimizer steps that theta* remembers, in (0, 1].
        max_steps: optimizer steps of the whole task. ``DynamicEMACallback`` takes Trainer's where
            this is None; a hand-written loop gives its own.

    Raises:
        ConfigError: a setting is out of range.

    Source: the usual warm-up of an exponential average; the horizon as a share is this project's.
    """

    terms = ()
    curvature_term = None

    share: float = 0.5
    max_steps: int | None = None
    fallback: float = field(default=0.01, init=False)  # never used: no step falls back

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share > 1:
            raise ConfigError(f"rule.share is {self.share!r}; expected a number in (0, 1].")

    def for_training(self, max_steps: int | None = None) -> "Horizon":
        """Return the rule with ``max_steps`` known, its own if it has one.

        Raises:
            ConfigError: neither it nor the caller knows how long training is.
        """
        if self.max_steps is not None:
            return self
        if max_steps is None:
            raise ConfigError(
                "rule.max_steps is not given; rule 'horizon' needs the number of optimizer steps, "
                'as in {"name": "horizon", "share": 0.5, "max_steps": 300}. DynamicEMACallback '
                "knows it from Trainer."
            )
        return replace(self, max_steps=max_steps)

    def gain(self, sums: Sums, *, step: int) -> Tensor:
        """Return 1 - beta for every tensor, shape (tensors,), in (0, 1]."""
        assert self.max_steps is not None  # DynamicEMA asked for_training()
        horizon = max(self.share * self.max_steps, 1)
        return torch.full_like(sums["drift_l1"], 1 / min(step + 1, horizon))
