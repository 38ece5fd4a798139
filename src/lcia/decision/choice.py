"""Which candidate a retrained group becomes: decided on validation samples, nothing else.

A sample's *quality* under a candidate lies in [0, 1]: the mean of how sure the candidate is of the
right answer, exp(-loss), and of the share of it that greedy decoding gives before it first goes
wrong. The first sees a little, the second sees answers turn over that were close; both come from
the same logits. An earlier task is *harmed* by a candidate if its mean quality falls, against the
version before, by more than ``DOUBT`` standard errors of that mean, paired by sample. A candidate's
score is the mean over tasks of their mean quality, or with ``worst`` the share of the worst task in
it.

1. Of the candidates that retrain, those that harm no earlier task come first; of them, or of all
   if each harms one, the highest score.
2. A sibling group, with the parameters that training ended with, may be opened if it harms no task
   and routing tells its prompts apart. The group is retrained only if that is shown to be as good:
   if no earlier task is harmed, and its score with ``price`` on top is above the sibling's by
   ``SHOWN`` standard errors of the difference, in which one more sample (``UNSEEN``) is reckoned
   with. A retraining that harms a task has to be better than the sibling by ``HARM`` less
   ``price``.

On a few samples the best of several candidates is mostly a lucky one, and a fall that they do not
show is forgotten for good; a group too many can be joined again. docs/study.md has measurements.
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

DOUBT = 0.5
"""Standard errors that count as noise: an earlier task that falls by more is harmed."""

SHOWN = 1.0
"""Standard errors by which retraining has to be above a sibling, with the price on top."""

UNSEEN = 0.25
"""Difference of one more sample, reckoned with in that error: eight that agree do not show that all
would."""

HARM = 0.04
"""Mean quality that it is worth to harm no earlier task."""

TOLD_APART = 0.8
"""Share of each task's validation prompts that routing has to send to its own of two siblings."""

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one set of parameters gives on some samples; each of shape (samples,).

    Attributes:
        losses: mean over a sample's answer tokens, in nats.
        given: share of a sample's answer tokens that greedy decoding gives before it first goes
            wrong; 1 for the whole answer.
    """

    losses: Values
    given: Values

    @property
    def quality(self) -> Values:
        """How good each answer is, in [0, 1], shape (samples,)."""
        return (np.exp(-self.losses) + self.given) / 2

    @property
    def exact(self) -> Values:
        """1 where greedy decoding gives the whole answer, else 0."""
        return (self.given >= 1).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a group may become.

    Attributes:
        name: of the candidate; ``EXPAND`` for a sibling group.
        measured: task to what it gives on the task's validation samples.
        estimate: fall of the mean quality of a task without samples, by the quadratic estimate.
        told_apart: the smallest share, over tasks, of samples that reach their own group.
        parameters: name of the candidate whose parameters it has; empty: its own.
    """

    name: str
    measured: Mapping[str, Measured]
    estimate: float = 0.0
    told_apart: float = 1.0
    parameters: str = ""

    def row(self, harm: list[str], total: float) -> dict[str, Any]:
        """Return what the record says of it."""
        return {
            "name": self.name,
            "losses": {t: round(float(m.losses.mean()), 6) for t, m in self.measured.items()},
            "exact": {t: round(float(m.exact.mean()), 6) for t, m in self.measured.items()},
            "quality": {t: round(float(m.quality.mean()), 6) for t, m in self.measured.items()},
            "samples": max((len(m.losses) for m in self.measured.values()), default=0),
            "harmed": harm,
            "score": round(total, 6),
            "estimate": round(self.estimate, 6),
            "told_apart": round(self.told_apart, 4),
            "parameters": self.parameters or self.name,
        }


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The candidate that was chosen, and what each would have given.

    Attributes:
        chosen: its name.
        parameters: name of the candidate whose parameters the adapter gets.
        why: one line.
        task: the task just learned.
        samples: task to the number of its validation samples that were used.
        unmeasured: earlier tasks without samples, for which the quadratic estimate stands.
        before: task to mean quality before learning.
        table: one row a candidate: see ``Candidate.row``.
        work: layers that measuring ran, as a share of those that training did.
        seconds: what measuring took.
    """

    chosen: str
    parameters: str
    why: str
    task: str
    samples: Mapping[str, int]
    unmeasured: int
    before: Mapping[str, float]
    table: tuple[Mapping[str, Any], ...] = field(default=())
    work: float = 0.0
    seconds: float = 0.0

    def best(self, count: int) -> set[str]:
        """Return the best candidates that retrain, and the one whose parameters a sibling gets."""
        retrain = [row for row in self.table if row["name"] != EXPAND]
        retrain.sort(key=lambda row: (bool(row["harmed"]), -row["score"]))
        sibling = [row for row in self.table if row["name"] == EXPAND]
        return {row["parameters"] for row in (*retrain[:count], *sibling)}

    @property
    def harms(self) -> bool:
        """Whether what was chosen harms an earlier task."""
        return any(row["harmed"] for row in self.table if row["name"] == self.chosen)


def standard_error(differences: Values, *, unseen: float = 0.0) -> float:
    """Return the standard error of the mean of paired differences; ``unseen`` for a single one.

    Args:
        differences: shape (samples,).
        unseen: distance from the mean of one more difference.
    """
    count = len(differences)
    if count < 2:
        return unseen
    squares = float(((differences - differences.mean()) ** 2).sum()) + unseen**2
    return float(np.sqrt(squares / (count - 1) / count))


def harmed(
    candidate: Candidate,
    before: Mapping[str, Measured],
    *,
    tolerated: float = 0.0,
    unmeasured: int = 0,
    least: float = TOLERANCE,
    doubt: float = DOUBT,
) -> list[str]:
    """Return the earlier tasks whose quality a candidate lowers by more than the doubt allows.

    Tasks without samples are one entry, ``(estimated)``, if their estimate is above ``tolerated``.
    A fall below ``least`` is none, however certain; one within ``doubt`` standard errors neither.
    """
    found = []
    for task, old in before.items():
        fall = old.quality - candidate.measured[task].quality
        if fall.mean() > max(least, doubt * standard_error(fall)):
            found.append(task)
    if unmeasured and candidate.estimate > tolerated:
        found.append("(estimated)")
    return found


def score(candidate: Candidate, *, worst: float, unmeasured: int) -> float:
    """Return the mean quality over tasks, blended with that of the worst by ``worst`` in [0, 1].

    A task without samples counts with its estimated fall; what it had before is the same for all.
    """
    means = [float(measured.quality.mean()) for measured in candidate.measured.values()]
    mean = (sum(means) - unmeasured * candidate.estimate) / (len(means) + unmeasured)
    return (1 - worst) * mean + worst * min(means)


def difference_error(
    one: Candidate, other: Candidate, *, unmeasured: int, unseen: float = UNSEEN
) -> float:
    """Return the standard error of the difference of two mean scores, paired by sample."""
    errors = [
        standard_error(one.measured[task].quality - other.measured[task].quality, unseen=unseen)
        for task in one.measured
    ]
    return float(np.sqrt(sum(error**2 for error in errors)) / (len(errors) + unmeasured))


def choose(
    task: str,
    candidates: list[Candidate],
    before: Mapping[str, Measured],
    *,
    price: float,
    worst: float = 0.0,
    unmeasured: int = 0,
) -> Choice:
    """Return which candidate a retrained group becomes; see the module for the criterion.

    Args:
        task: the task just learned.
        candidates: at least one that retrains, and at most one ``EXPAND``; all measured on the
            same samples.
        before: earlier task to what the version before gives on the same samples.
        price: of one more group, in mean quality; from 1 up no sibling is opened.
        worst: share of the worst task in a score; 0 is the mean over tasks.
        unmeasured: how many earlier tasks have no samples.
    """
    scores = {c.name: score(c, worst=worst, unmeasured=unmeasured) for c in candidates}
    harm = {c.name: harmed(c, before, tolerated=price, unmeasured=unmeasured) for c in candidates}
    retrain = [c for c in candidates if c.name != EXPAND]
    best = min(retrain, key=lambda c: (bool(harm[c.name]), -scores[c.name]))
    harmless = not harm[best.name]
    chosen, why = best.name, "highest score of those that harm no earlier task"
    if not harmless:
        why = "highest score; each candidate harms an earlier task"
    for sibling in (c for c in candidates if c.name == EXPAND):
        gain = scores[EXPAND] - scores[best.name]
        noise = SHOWN * difference_error(best, sibling, unmeasured=unmeasured)
        least = price - (noise if harmless else max(noise, HARM))
        if sibling.told_apart < TOLD_APART:
            why += "; routing cannot tell a sibling's prompts apart"
        elif harm[EXPAND]:
            why += "; a sibling group harms one by its routing"
        elif price < 1 and gain > least:
            chosen = EXPAND
            why = "retraining harms an earlier task, a sibling group none"
            if harmless:
                why = (
                    f"retraining is not shown to be as good: a sibling group scores {gain:+.3f}, "
                    f"and the group is kept below {least:+.3f}"
                )
        else:
            why += f"; a sibling group scores {gain:+.3f}, and is opened above {least:+.3f}"
    return Choice(
        chosen=chosen,
        parameters=next(c.parameters or c.name for c in candidates if c.name == chosen),
        why=why,
        task=task,
        samples={name: len(m.losses) for name, m in candidates[0].measured.items()},
        unmeasured=unmeasured,
        before={name: round(float(m.quality.mean()), 6) for name, m in before.items()},
        table=tuple(c.row(harm[c.name], scores[c.name]) for c in candidates),
    )


def quadratic_scale(falls: Values, distances: Values) -> float:
    """Return the quality that a unit of precision-weighted distance costs: least squares through 0.

    Fitted on the new task, whose fall along the path is measured, and taken for the earlier tasks,
    whose precisions are scaled alike: fall = scale * 1/2 sum F (theta - theta_task)^2.

    Args:
        falls: measured fall of the new task's mean quality below that of its own parameters.
        distances: 1/2 sum F_new (theta - theta_new)^2 of the same candidates.
    """
    total = float((distances**2).sum())
    return max(0.0, float((falls * distances).sum()) / total) if total > 0 else 0.0
