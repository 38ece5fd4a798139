"""What dynamic EMA decides at a step, and what it did, in one step or in many."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lcia.ema.balance import Rule, Sums

# The order is the code: reasons[i] of a Decision indexes this tuple.
CLOSED_FORM = "closed_form"
REASONS = (
    "first_step",
    "no_drift",
    "no_curvature",
    "out_of_range",
    "not_finite",
    "no_gradient",
)
OUTCOMES = (CLOSED_FORM, *REASONS)


class Decision(NamedTuple):
    """Gains of one step.

    Attributes:
        gain: 1 - beta per tensor, shape (tensors,), in [0, 1]; 0 keeps the average untouched.
        outcome: index into ``OUTCOMES`` per tensor, shape (tensors,).
    """

    gain: Tensor
    outcome: Tensor


def decide(rule: Rule, sums: Sums, *, known: Tensor, step: int) -> Decision:
    """Return the gain of every tensor and the reason where it is a fallback.

    A tensor whose parameters or gradient are not finite keeps its average (gain 0). Where only
    the gradient before was not finite, the fallback applies, under the same reason.

    Args:
        rule: the balance rule.
        sums: the rule's terms and ``drift_l1``, each of shape (tensors,).
        known: whether a tensor has a previous gradient, shape (tensors,), bool.
        step: updates so far, this one included.
    """
    gain = rule.gain(sums, step=step)
    outcome = torch.zeros_like(gain, dtype=torch.long)
    if rule.curvature_term is not None:
        _mark(outcome, "out_of_range", ~((gain > 0) & (gain < 1)))
        _mark(outcome, "no_curvature", sums[rule.curvature_term] <= 0)
        _mark(outcome, "no_drift", sums["drift_l1"] == 0)
        _mark(outcome, "first_step", ~known)
    all_finite = torch.stack([value.isfinite() for value in sums.values()]).all(dim=0)
    _mark(outcome, "not_finite", ~all_finite)
    now = [value for name, value in sums.items() if name in ("drift_l1", "grad_l1", "grad_drift")]
    now_finite = torch.stack([value.isfinite() for value in now]).all(dim=0)
    gain = torch.where(outcome == 0, gain, rule.fallback)
    return Decision(torch.where(now_finite, gain, 0.0), outcome)


def _mark(outcome: Tensor, reason: str, where: Tensor) -> None:
    outcome.masked_fill_(where, OUTCOMES.index(reason))


@dataclass(frozen=True, kw_only=True)
class EMAStats:
    """Balance weights and fallbacks of one step, or of several added up with ``+``.

    Attributes:
        steps: updates covered.
        moved: tensor updates that moved the average.
        gain_sum: sum of 1 - beta over those; ``gain_min`` and ``gain_max`` likewise.
        drift_l1: sum of |theta - theta*| over all finite tensors, before the last update.
        outcomes: tensor updates by outcome, in the order of ``lcia.ema.record.OUTCOMES``.
    """

    steps: float = 0
    moved: float = 0
    gain_sum: float = 0.0
    gain_min: float = float("inf")
    gain_max: float = 0.0
    drift_l1: float = 0.0
    outcomes: tuple[float, ...] = (0,) * len(OUTCOMES)

    def __add__(self, later: "EMAStats") -> "EMAStats":
        """Return the two together; ``later`` gives the drift."""
        return EMAStats(
            steps=self.steps + later.steps,
            moved=self.moved + later.moved,
            gain_sum=self.gain_sum + later.gain_sum,
            gain_min=min(self.gain_min, later.gain_min),
            gain_max=max(self.gain_max, later.gain_max),
            drift_l1=later.drift_l1,
            outcomes=tuple(a + b for a, b in zip(self.outcomes, later.outcomes, strict=True)),
        )

    @property
    def beta_mean(self) -> float:
        """Mean weight of the old average; 1 where nothing moved."""
        return 1 - self.gain_sum / max(self.moved, 1)

    @property
    def beta_min(self) -> float:
        """Smallest weight of the old average."""
        return 1 - self.gain_max

    @property
    def beta_max(self) -> float:
        """Largest weight of the old average."""
        return 1 - min(self.gain_min, 1.0)

    @property
    def horizon_steps(self) -> float:
        """1 / (1 - beta_mean): how many steps the average remembers."""
        return self.moved / self.gain_sum if self.gain_sum > 0 else float("inf")

    @property
    def counts(self) -> dict[str, int]:
        """Tensor updates by outcome: ``closed_form`` and every fallback reason."""
        return dict(zip(OUTCOMES, map(int, self.outcomes), strict=True))

    @property
    def shares(self) -> dict[str, float]:
        """Share of the tensor updates under each fallback reason, in [0, 1]."""
        total = max(sum(self.outcomes), 1)
        return {reason: self.counts[reason] / total for reason in REASONS}

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, for a log or a journal."""
        return {
            "steps": int(self.steps),
            "beta_mean": self.beta_mean,
            "beta_min": self.beta_min,
            "beta_max": self.beta_max,
            "horizon_steps": self.horizon_steps,
            "drift_l1": self.drift_l1,
            "fallback": self.shares,
        }

    def as_tensor(self) -> Tensor:
        """Return everything as one float64 vector, the inverse of ``read``."""
        *head, outcomes = astuple(self)
        return torch.tensor([*head, *outcomes], dtype=torch.double)


def read(vector: Sequence[float]) -> EMAStats:
    """Return the figures that a vector of ``summarise`` or ``as_tensor`` holds."""
    steps, moved, gain_sum, gain_min, gain_max, drift_l1, *outcomes = vector
    return EMAStats(
        steps=steps,
        moved=moved,
        gain_sum=gain_sum,
        gain_min=gain_min,
        gain_max=gain_max,
        drift_l1=drift_l1,
        outcomes=tuple(outcomes),
    )


def summarise(decision: Decision, drift_l1: Tensor, *, without_gradient: int) -> Tensor:
    """Return one step as a vector on the tensors' device, so that nothing waits for the host."""
    gain = decision.gain.double()
    outcomes = torch.bincount(decision.outcome, minlength=len(OUTCOMES)).double()
    outcomes[-1] += without_gradient
    head = [
        gain.new_ones(()),
        (gain > 0).sum().double(),
        gain.sum(),
        torch.where(gain > 0, gain, torch.inf).min(),
        gain.max(),
        torch.where(drift_l1.isfinite(), drift_l1, 0.0).double().sum(),
    ]
    return torch.cat([torch.stack(head), outcomes])
