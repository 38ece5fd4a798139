"""LCIA as published, for comparison: dynamic EMA over grouped adapters and nothing else."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lcia.integrations.transformers import DynamicEMACallback
from lcia.methods.base import Method, TaskContext


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
