"""Which candidate a retrained group becomes: decided on validation losses, nothing else.

Every number here is a loss in nats per answer token. With L_c[s] the loss of sample s under
candidate c and L_0[s] under the version before, an earlier task t is *harmed* by c if the mean of
L_c[s] - L_0[s] over its samples exceeds the standard error of that mean. A candidate's score is
the mean over tasks of their mean loss, or with ``worst`` the share of the worst task in it.

1. Of the candidates that retrain, those that harm no earlier task come first; of them, or of all
   if each harms one, the lowest score.
2. A sibling group, with the parameters that serve the new task best, is opened if it harms no task
   and routing tells its prompts apart, and either every retraining harms one (unless the sibling
   scores higher by more than ``price`` and the standard error of the difference), or it scores
   lower by more than both.
3. Else the group is retrained: within the noise, fewer groups win.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXPAND = "expand"
"""The candidate that opens a sibling group."""

TOLERANCE = 1e-6
"""Differences of the mean below this are rounding."""

TOLD_APART = 0.8
"""Share of each task's validation prompts that routing has to send to its own of two siblings."""

Losses = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a group may become.

    Attributes:
        name: of the candidate; ``EXPAND`` for a sibling group.
        losses: task to the loss of each of its validation samples, shape (samples,).
        estimate: rise of the mean loss of a task without samples, by the quadratic estimate.
        told_apart: the smallest share, over tasks, of samples that reach their own group.
        parameters: name of the candidate whose parameters a sibling gets; empty: its own.
    """

    name: str
    losses: Mapping[str, Losses]
    estimate: float = 0.0
    told_apart: float = 1.0
    parameters: str = ""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate that was chosen, and what each would have given.

    Attributes:
        chosen: its name.
        parameters: name of the candidate whose parameters the adapter gets.
        why: one line.
        task: the task just learned.
        samples: task to the number of its validation samples.
        unmeasured: earlier tasks without samples, for which the quadratic estimate stands.
        before: task to mean loss before learning.
        table: one row a candidate: ``name``, ``losses`` (task to mean), ``harmed`` (tasks),
            ``score``, ``estimate`` and ``told_apart``.
        seconds: what scoring them took.
    """

    chosen: str
    parameters: str
    why: str
    task: str
    samples: Mapping[str, int]
    unmeasured: int
    before: Mapping[str, float]
    table: tuple[Mapping[str, Any], ...] = field(default=())
    seconds: float = 0.0


def standard_error(differences: Losses) -> float:
    """Return the standard error of the mean of paired differences; 0 for a single one."""
    count = len(differences)
    return float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0


def harmed(
    candidate: Candidate, before: Mapping[str, Losses], *, tolerated: float, unmeasured: int
) -> list[str]:
    """Return the earlier tasks whose loss a candidate raises by more than its standard error.

    Tasks without samples are one entry, ``(estimated)``, if their estimate is above ``tolerated``.
    """
    found = []
    for task, losses in before.items():
        rise = candidate.losses[task] - losses
        if rise.mean() > standard_error(rise) + TOLERANCE:
            found.append(task)
    if unmeasured and candidate.estimate > tolerated:
        found.append("(estimated)")
    return found


def score(candidate: Candidate, *, worst: float, unmeasured: int) -> float:
    """Return the mean loss over tasks, blended with that of the worst by ``worst`` in [0, 1].

    A task without samples counts with its estimated rise; what it had before is the same for all.
    """
    means = [float(losses.mean()) for losses in candidate.losses.values()]
    mean = (sum(means) + unmeasured * candidate.estimate) / (len(means) + unmeasured)
    return (1 - worst) * mean + worst * max(means)


def difference_error(one: Candidate, other: Candidate, *, unmeasured: int) -> float:
    """Return the standard error of the difference of two mean scores, paired by sample."""
    errors = [standard_error(one.losses[task] - other.losses[task]) for task in one.losses]
    return float(np.sqrt(sum(error**2 for error in errors)) / (len(errors) + unmeasured))


def choose(
    task: str,
    candidates: list[Candidate],
    before: Mapping[str, Losses],
    *,
    price: float,
    worst: float = 0.0,
    unmeasured: int = 0,
    seconds: float = 0.0,
) -> Choice:
    """Return which candidate a retrained group becomes; see the module for the criterion.

    Args:
        task: the task just learned.
        candidates: at least one that retrains, and at most one ``EXPAND``.
        before: earlier task to the loss of each of its samples before learning, shape (samples,).
        price: of one more group, in nats a token.
        worst: share of the worst task in a score; 0 is the mean over tasks.
        unmeasured: how many earlier tasks have no samples.
        seconds: what scoring took, for the record.
    """
    scores = {c.name: score(c, worst=worst, unmeasured=unmeasured) for c in candidates}
    harm = {c.name: harmed(c, before, tolerated=price, unmeasured=unmeasured) for c in candidates}
    retrain = [c for c in candidates if c.name != EXPAND]
    harmless = [c for c in retrain if not harm[c.name]]
    best = min(harmless or retrain, key=lambda c: scores[c.name])
    chosen, why = best.name, "lowest loss of those that harm no earlier task"
    if not harmless:
        why = "lowest loss; each candidate harms an earlier task"
    for sibling in (c for c in candidates if c.name == EXPAND):
        gain = scores[best.name] - scores[EXPAND]
        noise = difference_error(best, sibling, unmeasured=unmeasured)
        if sibling.told_apart < TOLD_APART:
            why += "; routing cannot tell a sibling's prompts apart"
        elif harm[EXPAND]:
            why += "; a sibling group harms one by its routing"
        elif not harmless and gain > -(price + noise):
            chosen, why = EXPAND, "only a sibling group harms no earlier task"
        elif gain > price + noise:
            chosen = EXPAND
            why = f"a sibling group's loss is {gain:.3f} lower, price and noise {price + noise:.3f}"
        else:
            why += f"; a sibling group would gain {gain:.3f}, price and noise {price + noise:.3f}"
    counts = {name: len(losses) for name, losses in candidates[0].losses.items()}
    return Choice(
        chosen=chosen,
        parameters=next(c.parameters or c.name for c in candidates if c.name == chosen),
        why=why,
        task=task,
        samples=counts,
        unmeasured=unmeasured,
        before={name: round(float(losses.mean()), 6) for name, losses in before.items()},
        table=tuple(_row(c, harm[c.name], scores[c.name]) for c in candidates),
        seconds=seconds,
    )


def quadratic_scale(rises: Losses, distances: Losses) -> float:
    """Return the loss that a unit of precision-weighted distance costs: least squares through 0.

    Fitted on the new task, whose rise along the path is measured, and taken for the earlier tasks,
    whose precisions are scaled alike: rise = scale * 1/2 sum F (theta - theta_task)^2.

    Args:
        rises: measured rise of the new task's mean loss over that of its own parameters.
        distances: 1/2 sum F_new (theta - theta_new)^2 of the same candidates.
    """
    total = float((distances**2).sum())
    return max(0.0, float((rises * distances).sum()) / total) if total > 0 else 0.0


def _row(candidate: Candidate, harm: list[str], total: float) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "losses": {t: round(float(v.mean()), 6) for t, v in candidate.losses.items()},
        "harmed": harm,
        "score": round(total, 6),
        "estimate": round(candidate.estimate, 6),
        "told_apart": round(candidate.told_apart, 4),
        "parameters": candidate.parameters or candidate.name,
    }
