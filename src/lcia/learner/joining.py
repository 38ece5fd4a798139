"""Groups become fewer where one adapter serves as well as two: measured, not assumed.

Siblings were opened because no retraining kept both tasks when it was tried. A merge of the two
adapters may: each is tried on the validation samples that stay with the groups, routed as they
would be, and taken only if no task is harmed (``lcia.decision.choice``). A merge that is taken is a
version of its own.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from statistics import fmean

import numpy as np

from lcia.data.sample import Sample
from lcia.decision.choice import Candidate, Measured, harmed
from lcia.decision.measuring import read_answers
from lcia.errors import ConfigError
from lcia.evaluation.generate import Adapters
from lcia.grouping import InstructionCodebook, Router, told
from lcia.learner.learning import ContinualLearner
from lcia.learner.lifecycle import merge_groups
from lcia.store.samples import VALIDATION, kept_with
from lcia.store.version import Version

COMBINED = ("svd", "linear")
"""Ways of combining that keep the rank, so that the groups' adapters stay of one shape."""

WEIGHTS = (0.5, 0.3, 0.7)
"""Shares of the older group's adapter that are tried."""

Routed = tuple[Sample, str | None, str | None]
"""A sample, the group that answers it now, and the one that would if two were joined."""


@dataclass(frozen=True, kw_only=True)
class Joining:
    """What two groups would be as one.

    Attributes:
        group: the older group, which stays.
        other: the younger one, which is gone if they are joined.
        combination: of the best merge; empty where none was measured.
        weight: share of ``group``'s adapter in it.
        before: task to its mean quality on validation samples, as the groups are.
        after: the same with the merge.
        harmed: the tasks that the merge harms.
        why_not: why the groups stay as they are; empty where they are joined.
    """

    group: str
    other: str
    combination: str = ""
    weight: float = 0.0
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    harmed: Sequence[str] = ()
    why_not: str = ""


def consolidate(
    learner: ContinualLearner,
    *,
    all_pairs: bool = False,
    dry_run: bool = False,
    tell: Callable[[Joining], object] = lambda joining: None,
) -> list[Joining]:
    """Join groups that one merged adapter replaces without harm to any task.

    Args:
        learner: of the assistant.
        all_pairs: try every two groups; else those that share an instruction.
        dry_run: only measure.
        tell: called with what came of each pair at once.

    Returns:
        What came of each pair, in the order tried; a group that grew is tried with others again.

    Raises:
        StoreError: a task is unfinished, or another process is changing the assistant.
    """
    results: list[Joining] = []
    tried: set[tuple[str, str]] = set()
    version = learner.store.current
    while pair := next(_pairs(version.codebook(), tried, all_pairs=all_pairs), None):
        tried.add(pair)
        joining = measure_joining(learner, version, *pair)
        results.append(joining)
        tell(joining)
        if joining.why_not or dry_run:
            continue
        version = merge_groups(
            learner,
            *pair,
            weight=joining.weight,
            combination=joining.combination,
        )
        tried = {known for known in tried if joining.group not in known}
    return results


def measure_joining(learner: ContinualLearner, version: Version, group: str, other: str) -> Joining:
    """Measure what merges of two groups give on the validation samples that they may reach."""
    now, joined = version.codebook(), version.codebook()
    kept = _validation(version)
    tasks = {task.name for name in (group, other) for task in now.group(name).tasks}
    if missing := sorted(tasks - set(kept)):
        why_not = f"no validation samples of {', '.join(missing)} are kept to measure it by"
        return Joining(group=group, other=other, why_not=why_not)
    joined.merge(group, other)
    routed = _routed(kept, Router(now), Router(joined), pair=(group, other))
    before = _answered(learner, version.adapters, routed, joined=False)
    found, refused = list[Joining](), ""
    for combination, weight in product(COMBINED, WEIGHTS):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                folder = learner.host.combine(
                    {
                        group: (version.adapters[group], weight),
                        other: (version.adapters[other], 1 - weight),
                    },
                    Path(scratch) / group,
                    combination=combination,
                )
            except ConfigError as error:
                refused = str(error)
                continue
            adapters = {**version.adapters, group: (f"{group} with {other}", folder)}
            after = _answered(learner, adapters, routed, joined=True)
            learner.host.clear()  # the folder is gone, and the next has the same name
        merged = Candidate(name=combination, measured=after)
        harm = harmed(merged, before, tolerated=0.0, unmeasured=0)
        found.append(
            Joining(
                group=group,
                other=other,
                combination=combination,
                weight=weight,
                before=_means(before),
                after=_means(after),
                harmed=harm,
                why_not=f"the best merge harms {', '.join(harm)}" if harm else "",
            )
        )
    if not found:
        return Joining(group=group, other=other, why_not=refused)
    return max(found, key=lambda one: (not one.harmed, fmean(one.after.values())))


def _pairs(
    codebook: InstructionCodebook, tried: set[tuple[str, str]], *, all_pairs: bool
) -> Iterator[tuple[str, str]]:
    """Yield the pairs of active groups that were not tried, the older group first."""
    active = [group.id for group in codebook.groups if not group.retired]
    for pair in combinations(active, 2):
        if pair not in tried and (all_pairs or pair[1] in codebook.siblings(pair[0])):
            yield pair


def _validation(version: Version) -> dict[str, list[Sample]]:
    """Return task to the validation samples that its group keeps."""
    found: dict[str, list[Sample]] = {}
    for _, folder in version.adapters.values():
        for sample, task in kept_with(folder, VALIDATION):
            found.setdefault(task or "", []).append(sample)
    return found


def _routed(
    kept: Mapping[str, Sequence[Sample]], now: Router, joined: Router, *, pair: tuple[str, str]
) -> dict[str, list[Routed]]:
    """Return task to its samples and their routes, if any of them may be answered otherwise."""
    found = {}
    for task, samples in kept.items():
        asked = [(sample, told(sample.messages)) for sample in samples]
        routes = [(s, now.route(said).group, joined.route(said).group) for s, said in asked]
        if any(before != after or before in pair for _, before, after in routes):
            found[task] = routes
    return found


def _answered(
    learner: ContinualLearner,
    adapters: Adapters,
    routed: Mapping[str, Sequence[Routed]],
    *,
    joined: bool,
) -> dict[str, Measured]:
    """Return task to what adapters give on its samples, as they are routed now or if joined."""
    chat = learner.host.chat
    places: dict[str | None, list[tuple[str, int]]] = {}
    for task, rows in routed.items():
        for row, (_, now, after) in enumerate(rows):
            places.setdefault(after if joined else now, []).append((task, row))
    found = {task: np.zeros((2, len(rows))) for task, rows in routed.items()}
    for group, asked in places.items():
        examples = [chat.encode_example(routed[task][row][0]) for task, row in asked]
        adapter = None if group is None else adapters[group]
        measured = read_answers(learner.host, examples, adapter)
        for i, (task, row) in enumerate(asked):
            found[task][:, row] = measured.losses[i], measured.given[i]
    return {task: Measured(losses=losses, given=given) for task, (losses, given) in found.items()}


def _means(measured: Mapping[str, Measured]) -> dict[str, float]:
    return {task: float(one.quality.mean()) for task, one in measured.items()}
