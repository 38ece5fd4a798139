"""From sums to gains: where the closed form applies, what happens elsewhere, and why."""

from typing import NamedTuple

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
