"""Large Continual Instruction Assistant: dynamic EMA over grouped adapters, merged by precision.

``LciaPaper`` and ``LciaRelease`` are what was published: dynamic EMA over groups and nothing else.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcia.data.sample import Sample
from lcia.errors import ConfigError
from lcia.integrations.transformers import DynamicEMACallback
from lcia.methods.base import Candidates, Method, TaskContext
from lcia.methods.merge import Merge, start_of
from lcia.methods.replay import quota, with_remembered

logger = logging.getLogger(__name__)

STRAIGHT = 0.5
"""A point of the straight path from the old parameters (0) to the trained ones (1), taken where no
precision is known; the precision-weighted path did better in the choices that docs/study.md has."""

WEIGHED = (0.3, 1.0)
"""Values of lambda on the precision-weighted path."""

SHARES = {
    "remembered": "each task's samples",
    "validation": "each task's samples",
    "worst": "the worst task",
    "opening": "the held-back samples",
}
"""Settings that are shares, and of what."""

State = Mapping[str, Tensor]


class Lcia(Merge):
    """Tasks grouped by instruction, reused adapters averaged by dynamic EMA, merged, replayed.

    A group that a task opens has nothing to protect and is trained plainly. A group that is
    retrained starts with the average at its stored parameters. With ``validation`` above 0, what
    it ends as is measured: ``candidates`` are points between the old parameters and the trained
    ones, or a sibling group, and the learner chooses on samples held back from every task
    (``lcia.decision.choice``). With ``validation`` 0 it ends as the average, with an ``old_weight``
    above 0 merged into the stored parameters by precision, as ``merge`` does with the trained ones.

    ``remembered`` is the share of every task's samples that stay with its group, and are shuffled
    among the new ones when it is retrained, unless a sibling will most likely take the task. With
    ``remembered`` 0 held-back samples are not kept either: then the quadratic estimate stands for
    the earlier tasks. ``opening`` is the share of the held-back samples that a task trains on after
    all if it opens a group, or most likely will. docs/study.md has the
    measurements behind the defaults.

    Source: arXiv:2410.10868, taken further. ``lcia_paper`` and ``lcia_release`` are what was
    published.
    """

    averages: ClassVar[bool] = True
    settings: ClassVar[dict[str, Any]] = {
        "old_weight": 0.3,
        "remembered": 0.125,
        "validation": 0.1,
        "price": 0.02,
        "worst": 0.0,
        "opening": 1.0,
    }

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for key in SHARES:
            if self.config[key] > 1:
                what = SHARES[key]
                raise ConfigError(
                    f"method.{key} is {self.config[key]!r}; expected a share of {what}, "
                    "from 0 to 1."
                )

    @property
    def held_back(self) -> float:
        """Share of a task's training samples that is not trained on, to choose by."""
        return float(self.config["validation"])

    @property
    def trained_when_opening(self) -> float:
        """Share of the held-back samples that a task opening a group is trained on after all."""
        return float(self.config["opening"])

    @property
    def keeps_held_back(self) -> bool:
        """Whether the held-back samples stay with the group: where samples may be kept at all."""
        return bool(self.config["remembered"] > 0)

    def samples(self, context: TaskContext) -> Sequence[Sample]:
        """Train on the task and what the group remembers; alone where a sibling may take it."""
        return context.task.train if context.alone else with_remembered(context)

    def remember(self, context: TaskContext) -> Sequence[Sample]:
        """Keep what is remembered and a share of the task."""
        count = math.ceil(self.config["remembered"] * len(context.task.train))
        return [*context.remembered, *quota(context, count)]

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Average dynamically where there is something to protect; merge or measure at the end."""
        self._measures = context.measured and not trainer.launch.spreads
        if context.measured and not self._measures:
            logger.warning(
                "group %s: parameters are spread over processes, so what it becomes is not "
                "measured: the average is merged. Train on one process or with DDP to measure.",
                context.group,
            )
        if context.reused and not context.alone:
            self._average = DynamicEMACallback(rule=self.rule, copy_at_end=not self._measures)
            self._average.attach(trainer)
        if self._measures:
            self._start = start_of(context)
        if self.config["old_weight"] > 0 and self._measures:
            self._add(trainer, context, theta_old=None)
        elif self.config["old_weight"] > 0:
            super().attach(trainer, context)

    @torch.no_grad()
    def candidates(self, context: TaskContext) -> Candidates | None:
        """Return what training ended with, and points on the way there from the old parameters."""
        if not self._measures:
            return None
        new = start_of(context)
        states: dict[str, Callable[[], State]] = {"trained": lambda: new}
        if context.alone:
            return Candidates(states=states)
        old, average = self._start, self._average.ema.shadow
        if not (self.config["old_weight"] > 0 and context.carried):
            states[f"straight-{STRAIGHT:g}"] = partial(_between, old, new, STRAIGHT)
            states["average"] = lambda: average
            return Candidates(states=states)
        merge = self._callback.merge
        for weight in WEIGHED:
            states[f"precision-{weight:g}"] = partial(_merged, merge, old, new, weight)
        weight = self.config["old_weight"]
        states[f"average-precision-{weight:g}"] = partial(_merged, merge, old, average, weight)

        def distances() -> dict[str, tuple[float, float]]:
            precision = merge.precision(alone=True)
            found = {}
            for name, state in states.items():
                values = state()
                found[name] = (
                    _distance(context.carried, values, old),
                    _distance(precision, values, new),
                )
            return found

        return Candidates(states=states, distances=distances)

    def finish(self, context: TaskContext) -> Mapping[str, Any]:
        """Carry on the summed precision, if it is used."""
        return super().finish(context) if self.config["old_weight"] > 0 else {}


def _between(old: State, new: State, share: float) -> State:
    return {n: torch.lerp(v.float(), new[n].float(), share) for n, v in old.items()}


def _merged(merge: Any, old: State, new: State, old_weight: float) -> State:
    weights = merge.weights(old_weight)
    return {n: torch.lerp(v.float(), new[n].float(), weights[n]) for n, v in old.items()}


def _distance(precision: State, one: State, other: State) -> float:
    """Return 1/2 sum F (one - other)^2."""
    parts = [
        (precision[n].to(v.device) * (one[n].float() - v.float()) ** 2).sum()
        for n, v in other.items()
        if n in precision
    ]
    return float(torch.stack(parts).sum()) / 2 if parts else 0.0


class LciaPaper(Method):
    """The paper's method: mean similarity, fresh groups, rule ``paper``; nothing else.

    A group that a task opens starts fresh and is trained plainly. One that is retrained ends as
    the dynamic EMA that started from its stored parameters. Instructions are compared by the mean
    over all pairs; the threshold is ``grouping.threshold``, 0.9 for one template a task as in the
    paper, which takes 0.3 for diverse ones.

    Source: arXiv:2410.10868. ``lcia`` is this project's own method; docs/study.md compares them.
    """

    groupings: ClassVar[tuple[str, ...]] = ("similar", "one", "per_task")
    fixed_grouping: ClassVar[Mapping[str, Any]] = {"aggregate": "mean", "start": "fresh"}
    balance: ClassVar[str] = "paper"

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Average dynamically where there is something to protect."""
        if context.reused:
            DynamicEMACallback(rule=self.balance).attach(trainer)


class LciaRelease(LciaPaper):
    """The authors' released code: rule ``release``, and the latest group below the threshold.

    Source: the code released with arXiv:2410.10868. Differs: there the average starts after the
    first step of every task, and a person reads similarities and chooses the groups.
    """

    fixed_grouping: ClassVar[Mapping[str, Any]] = {**LciaPaper.fixed_grouping, "below": "latest"}
    balance: ClassVar[str] = "release"
