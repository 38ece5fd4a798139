"""Which threshold suits a stream of tasks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lcia.errors import DataError
from lcia.grouping.codebook import GroupDecision, InstructionCodebook
from lcia.grouping.config import GroupingConfig
from lcia.grouping.instruction import Extraction, Prompt
from lcia.grouping.router import Router

READ = 200
"""Prompts of a task that ``shares_told_apart`` reads."""


@dataclass(frozen=True, kw_only=True)
class ThresholdLevel:
    """A range of thresholds that give the same groups.

    Attributes:
        low: the groups hold for thresholds above this,
        high: up to and with this.
        groups: task to group.
    """

    low: float
    high: float
    groups: Mapping[str, str]

    @property
    def group_count(self) -> int:
        """The number of groups."""
        return len(set(self.groups.values()))


@dataclass(frozen=True, kw_only=True)
class ThresholdAdvice:
    """What each threshold would do to a stream.

    Attributes:
        threshold: the middle of the widest level; levels at which every task shares one group
            count only where there is no other.
        levels: all levels, the highest thresholds first; together they cover (0, 1].
    """

    threshold: float
    levels: tuple[ThresholdLevel, ...]


def plan_groups(
    tasks: Mapping[str, Extraction], config: GroupingConfig
) -> dict[str, tuple[str, GroupDecision]]:
    """Return, for each task of a stream in its order, its group and the decision.

    Nothing is trained; it is what learning the stream from nothing would decide.
    """
    codebook = InstructionCodebook(replace(config, route_on="instruction"))
    planned = {}
    for task, extraction in tasks.items():
        decision = codebook.decide(extraction.instructions, system=extraction.system)
        planned[task] = (codebook.add(decision.group, extraction, task=task), decision)
    return planned


def shares_told_apart(
    tasks: Mapping[str, Extraction],
    prompts: Mapping[str, Sequence[Prompt]],
    planned: Mapping[str, tuple[str, GroupDecision]],
) -> dict[str, float]:
    """Return, for each task that joins a group, how well a sibling's prompts would find their way.

    The group's tasks and the new one, as a sibling, are counted on four fifths of at most ``READ``
    prompts each. The smaller share, of either, of the other prompts that reach their own of the two
    is returned, in [0, 1].

    Args:
        tasks: task to its instructions, in the stream's order.
        prompts: task to its training prompts.
        planned: what ``plan_groups`` returned for the stream.
    """
    members: dict[str, list[str]] = {}
    shares = {}
    for task, (group, decision) in planned.items():
        earlier = members.setdefault(group, [])
        if decision.group is not None:
            codebook, asked = InstructionCodebook(GroupingConfig()), []
            home: str | None = None
            for name in (*earlier, task):
                read = prompts[name][:READ]
                kept = [prompt for i, prompt in enumerate(read) if i % 5]
                to = None if name == task else home
                home = codebook.add(to, tasks[name], task=name, prompts=kept, content=True)
                asked.append((name == task, home, read[::5]))
            router = Router(codebook)
            hits: dict[bool, list[bool]] = {False: [], True: []}
            for new, own, texts in asked:
                hits[new] += [decided.group == own for decided in router.route_many(texts)]
            shares[task] = min(sum(found) / len(found) for found in hits.values() if found)
        earlier.append(task)
    return shares


def task_similarities(
    tasks: Mapping[str, Extraction], config: GroupingConfig
) -> NDArray[np.float64]:
    """Return the similarity of every task to every task alone in a group, shape (tasks, tasks).

    Row: the task that asks; column: the group that has learned the other.
    """
    codebook = InstructionCodebook(replace(config, route_on="instruction"))
    for task, extraction in tasks.items():
        codebook.add(None, extraction, task=task)
    rows = [list(codebook.similarities(task.instructions).values()) for task in tasks.values()]
    return np.array(rows).reshape(len(tasks), len(tasks))


def suggest_threshold(tasks: Mapping[str, Extraction], config: GroupingConfig) -> ThresholdAdvice:
    """Return how the groups of a stream change with the threshold, and the one to take.

    Starting from 1, the threshold is lowered to the largest similarity at which a task that
    opened a group would have reused one, and the stream is decided again, until none is left.

    Args:
        tasks: task to its instructions, in the stream's order.
        config: all but its groups and threshold counts.

    Raises:
        DataError: there are no tasks.
    """
    if not tasks:
        raise DataError("There are no tasks to group; expected at least 1.")
    bounds, plans = [1.0], []
    while bounds[-1] > 0:
        planned = plan_groups(tasks, replace(config, groups=None, threshold=bounds[-1]))
        plans.append({task: group for task, (group, _) in planned.items()})
        below = [d.similarity for _, d in planned.values() if d.reason == "expand"]
        bounds.append(max(below, default=0.0))
    levels = _joined(
        ThresholdLevel(low=low, high=high, groups=groups)
        for (high, low), groups in zip(pairwise(bounds), plans, strict=True)
    )
    telling = [level for level in levels if level.group_count > 1] or levels
    widest = max(telling, key=lambda level: level.high - level.low)
    return ThresholdAdvice(threshold=(widest.low + widest.high) / 2, levels=levels)


def _joined(levels: Iterable[ThresholdLevel]) -> tuple[ThresholdLevel, ...]:
    """Join neighbouring levels with the same groups."""
    joined: list[ThresholdLevel] = []
    for level in levels:
        if joined and joined[-1].groups == level.groups:
            joined[-1] = replace(joined[-1], low=level.low)
        else:
            joined.append(level)
    return tuple(joined)
