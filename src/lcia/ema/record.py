"""What dynamic EMA decides at a step, what it did in many, and its state as a file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lcia.ema.balance import STEP_L1, Rule, Sums
from lcia.errors import TrainingError

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


FILE_NAME = "dynamic_ema.safetensors"
SCHEMA = "2"
"""1 knew no step before the last: rules that read steps cannot go on from it."""


def save_state(path: Path, state: Mapping[str, Any], *, rule: Rule) -> None:
    """Write a ``DynamicEMA.state_dict()``; the file appears whole or not at all."""
    flat = {"stats": state["stats"]}
    for group, tensors in state.items():
        if group != "stats":
            flat |= {f"{group}/{name}": values.contiguous() for name, values in tensors.items()}
    partial = path.with_suffix(".partial")
    save_file(flat, partial, metadata={"schema": SCHEMA, "rule": _describe(rule)})
    partial.replace(path)


def load_state(path: Path, *, rule: Rule) -> dict[str, Any]:
    """Read what ``save_state`` wrote.

    Raises:
        TrainingError: there is no such file, or it was written under another rule, or by an
            earlier lcia without what the rule needs.
    """
    if not path.is_file():
        raise TrainingError(
            f"{path}: no such file. It holds the average that training resumes with; the "
            "checkpoint was written without dynamic EMA, or from another folder."
        )
    groups = ("shadow", "grad_prev", "theta_prev", "theta_before", STEP_L1)
    state: dict[str, Any] = {group: {} for group in groups}
    with safe_open(path, framework="pt") as file:
        written, schema = file.metadata()["rule"], file.metadata()["schema"]
        if schema == "1" and rule.needs_previous_parameters:
            raise TrainingError(
                f"{path}: was written by an earlier lcia, whose rule paired a gradient's change "
                "with the wrong step; its average cannot go on. Delete the folders checkpoint-* "
                f"in {path.parent.parent} to train from the start."
            )
        written = written.replace('"name": "Next"', '"name": "Toolkit"')  # once called so
        if written != _describe(rule):
            raise TrainingError(
                f"{path}: written under rule {written}; this run has {_describe(rule)}. "
                "Resume with the same rule, or start anew."
            )
        for key in file.keys():  # noqa: SIM118 (safe_open has keys() but is no mapping)
            group, _, name = key.partition("/")
            if name:
                state[group][name] = file.get_tensor(key)
            else:
                state[group] = file.get_tensor(key)
    return state


def _describe(rule: Rule) -> str:
    return json.dumps({"name": type(rule).__name__, **asdict(rule)}, sort_keys=True)
