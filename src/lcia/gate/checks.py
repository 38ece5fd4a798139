"""What a candidate has to pass, each a function from evidence to findings.

A check that has nothing to go by finds nothing: a first task has no earlier one. Another check is
another function in ``CHECKS``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from lcia.config import GateConfig
from lcia.evaluation.generate import Prediction
from lcia.gate.paired import Drop, drop_of, drops_of

ALL_TASKS = "all earlier tasks together"

Pair = tuple[list[float], list[float]]
"""Values of the same samples, of the current version and of the candidate."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a candidate and of the version that it would replace.

    Attributes:
        task: the task just learned; None where none was.
        scores: task to its score in percent, of the current version and of the candidate; the
            first is None where it was not measured.
        before: answers of the current version to held-out samples.
        after: answers of the candidate, the new task's among them.
        homes: task to the group that learned it.
        constant: score on the new task of the best answer that is always the same, in percent;
            None where it says nothing.
        losses: nats per token of the new task's answers (``new``) and of neutral ones
            (``neutral``), as each version reads them.
        kl: of the first tokens of untaught answers where the same group answers, nats per token.
        suites: bundled suite to right (1) or wrong (0), item by item.
    """

    task: str | None
    scores: Mapping[str, tuple[float | None, float | None]]
    before: Sequence[Prediction] = ()
    after: Sequence[Prediction] = ()
    homes: Mapping[str, str | None] = field(default_factory=dict)
    constant: float | None = None
    losses: Mapping[str, Pair] = field(default_factory=dict)
    kl: Sequence[float] = ()
    suites: Mapping[str, Pair] = field(default_factory=dict)

    def paired(self, value: Callable[[Prediction], float]) -> dict[str, Pair]:
        """Return task to a value of each held-out sample that both versions answered."""
        own = {(p.task, p.sample): value(p) for p in self.before}
        found: dict[str, Pair] = {}
        for p in self.after:
            if (key := (p.task, p.sample)) in own:
                before, after = found.setdefault(p.task, ([], []))
                before.append(own[key])
                after.append(value(p))
        return found


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check measured.

    Attributes:
        check: its name in ``CHECKS``.
        name: of what was measured, such as a task.
        measured: a drop in points, or a rise in nats per token.
        allowed: the most that passes.
        unit: of both.
        passed: the verdict.
        n: samples it rests on.
        p: of the test; None where nothing was tested.
        why: one clause that says what was found.
    """

    check: str
    name: str
    measured: float
    allowed: float
    unit: str
    passed: bool
    n: int
    p: float | None
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON values, rounded."""
        rounded = {k: round(v, 6) for k, v in asdict(self).items() if isinstance(v, float)}
        return {**asdict(self), **rounded, "passed": bool(self.passed)}


Check = Callable[[Evidence, GateConfig], Iterable[Finding]]


def max_drop(evidence: Evidence, config: GateConfig) -> Iterator[Finding]:
    """No task falls by more than ``max_drop`` points, whatever chance explains."""
    if config.max_drop is None:
        return
    for task, (old, new) in evidence.scores.items():
        if old is None or new is None:
            continue
        yield Finding(
            check="max_drop",
            name=task,
            measured=old - new,
            allowed=config.max_drop,
            unit="points",
            passed=old - new <= config.max_drop,
            n=sum(p.task == task for p in evidence.after),
            p=None,
            why=f"task '{task}' {_fell(old, new)}; gate.max_drop allows {config.max_drop:g}",
        )


def earlier_tasks(evidence: Evidence, config: GateConfig) -> Iterator[Finding]:
    """No earlier task falls by more than its noise floor, nor do all of them together."""
    pairs = {t: p for t, p in evidence.paired(_score).items() if t != evidence.task}
    if len(pairs) > 1:
        pairs[ALL_TASKS] = _joined(pairs.values())
    for name, drop in drops_of(pairs, alpha=config.alpha).items():
        what = name if name == ALL_TASKS else f"task '{name}'"
        yield _points("earlier_tasks", name, drop, what=what)


def new_task(evidence: Evidence, config: GateConfig) -> Iterator[Finding]:
    """The new task gains: it does not fall, and its score rises or its loss falls.

    It is also better answered than by always saying the same: who learned from wrong answers
    learned their form alone.
    """
    task = evidence.task
    pair = None if task is None else evidence.paired(_score).get(task)
    if task is None or pair is None:
        return
    drop = drop_of(*pair, alpha=config.alpha, name=task)
    yield _points("new_task", task, drop, what=f"the new task '{task}'")
    loss_before, loss_after = (np.asarray(v) for v in evidence.losses.get("new", ((), ())))
    if drop.size >= 0 and len(loss_before):
        rise = float((loss_after - loss_before).mean())
        gained = drop.size < 0 or rise < 0 or drop.before == 1.0
        yield Finding(
            check="new_task",
            name=f"{task}: loss",
            measured=rise,
            allowed=0.0,
            unit="nats",
            passed=gained,
            n=len(loss_before),
            p=None,
            why=f"the new task '{task}' {'gained' if gained else 'did not gain'}: its score is "
            f"{100 * drop.after:.1f}, its loss {_rose(rise)}",
        )
    if evidence.constant is not None:
        missing = evidence.constant - 100 * drop.after
        yield Finding(
            check="new_task",
            name=f"{task}: against one answer for all",
            measured=missing,
            allowed=0.0,
            unit="points",
            passed=missing <= 0,
            n=drop.n,
            p=None,
            why=f"the new task '{task}' scores {100 * drop.after:.1f}, and always giving one and "
            f"the same answer {evidence.constant:.1f}",
        )


def routing(evidence: Evidence, config: GateConfig) -> Iterator[Finding]:
    """Prompts of earlier tasks go to the group that learned them as often as before."""
    found = evidence.paired(lambda p: float(p.group == evidence.homes.get(p.task)))
    pairs = [pair for task, pair in found.items() if task != evidence.task]
    if pairs:
        drop = drop_of(*_joined(pairs), alpha=config.alpha, name="routing")
        yield _points("routing", "routing accuracy", drop, what="routing accuracy")


def general(evidence: Evidence, config: GateConfig) -> Iterator[Finding]:
    """What nobody taught stays: loss on neutral answers, KL of the first tokens of others."""
    before, after = (np.asarray(v, float) for v in evidence.losses.get("neutral", ((), ())))
    for name, rises, allowed in (
        ("loss on neutral answers", after - before, config.max_rise),
        ("KL on untaught prompts", np.asarray(evidence.kl, float), config.max_kl),
    ):
        if not len(rises):
            continue
        # A rise of so much is tolerated; more has to be more than chance.
        drop = drop_of(
            [0.0] * len(rises), (allowed - rises).tolist(), alpha=config.alpha, name=name
        )
        rise = float(rises.mean())
        yield Finding(
            check="general",
            name=name,
            measured=rise,
            allowed=allowed + drop.floor,
            unit="nats",
            passed=not drop.is_real,
            n=len(rises),
            p=drop.p,
            why=f"{name} {_rose(rise)}; {allowed:g} and noise are tolerated",
        )


def suites(evidence: Evidence, config: GateConfig) -> Iterator[Finding]:
    """Of the bundled suites, the candidate passes what the current version passes."""
    for name, (before, after) in evidence.suites.items():
        if any(before):  # else the model cannot do it
            drop = drop_of(before, after, alpha=config.alpha, name=name)
            yield _points("suites", name, drop, what=f"the suite '{name}'")


CHECKS: dict[str, Check] = {
    "max_drop": max_drop,
    "earlier_tasks": earlier_tasks,
    "new_task": new_task,
    "routing": routing,
    "general": general,
    "suites": suites,
}
"""Name to check, in the order of reports."""


def _score(prediction: Prediction) -> float:
    return prediction.score


def _joined(pairs: Iterable[Pair]) -> Pair:
    before, after = (list(chain.from_iterable(side)) for side in zip(*pairs, strict=True))
    return before, after


def _points(check: str, name: str, drop: Drop, *, what: str) -> Finding:
    """Return a finding about scores, which are shares, in points."""
    size, floor = 100 * drop.size, 100 * drop.floor
    told = "1 sample" if drop.n == 1 else f"{drop.n} samples"
    if drop.p is None:
        told += ": too few to test, so one answer may be lost"
    elif size > 0:
        told += f", p {drop.p:.2g}; chance explains {floor:.1f}"
    return Finding(
        check=check,
        name=name,
        measured=size,
        allowed=floor,
        unit="points",
        passed=not drop.is_real,
        n=drop.n,
        p=drop.p,
        why=f"{what} {_fell(100 * drop.before, 100 * drop.after)} ({told})",
    )


def _fell(before: float, after: float) -> str:
    """Say how a score in percent changed, as it is read: to one decimal."""
    old, new = f"{before:.1f}", f"{after:.1f}"
    if old == new:
        return f"stayed at {old}"
    how = "fell" if after < before else "rose"
    return f"{how} by {abs(after - before):.1f} points (from {old} to {new})"


def _rose(nats: float) -> str:
    if nats == 0:
        return "did not change"
    size = f"{abs(nats):.3f}" if abs(nats) >= 0.0005 else f"{abs(nats):.0e}"
    return f"{'rose' if nats > 0 else 'fell'} by {size} nats per token"
