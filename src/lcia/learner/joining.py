"""Groups become fewer where one adapter serves as well as two: measured, not assumed.

Siblings were opened because no retraining kept both tasks when it was tried. A merge of the two
adapters may: each is tried on the validation samples that stay with the groups, routed as they
would be, and taken only if no task is harmed (``lcia.decision.choice``). A merge that is taken is a
version of its own.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from lcia.data.sample import Sample
from lcia.decision.choice import Candidate, Measured, harmed
from lcia.errors import ConfigError
from lcia.gate.general import Adapter, Side, mean_loss, read_answers
from lcia.grouping import InstructionCodebook
from lcia.learner.learning import ContinualLearner
from lcia.learner.lifecycle import merge_groups
from lcia.store.samples import VALIDATION, kept_with
from lcia.store.version import Version

COMBINED = ("svd", "linear")
"""Ways of combining that keep the rank, so that the groups' adapters stay of one shape."""

WEIGHTS = (0.5, 0.3, 0.7)
"""Shares of the older group's adapter that are tried."""


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
    joined.merge(group, other)
    kept = _validation(version)
    tasks = {task.name for name in (group, other) for task in now.group(name).tasks}
    if missing := sorted(tasks - {task for task, _ in kept}):
        why_not = f"no validation samples of {', '.join(missing)} are kept to measure it by"
        return Joining(group=group, other=other, why_not=why_not)
    ways, merged_ways = (
        Side(codebook=book, adapters=version.adapters).adapters_for(sample for _, sample in kept)
        for book in (now, joined)
    )
    pairs = zip(kept, ways, merged_ways, strict=True)
    reached = {task for (task, _), (g, _), (h, _) in pairs if g != h or g in (group, other)}

    def answered(adapters: Sequence[Adapter]) -> dict[str, Measured]:
        """Return task to what adapters, one a kept sample, give on its samples."""
        rows = [i for i, (task, _) in enumerate(kept) if task in reached]
        asked, chosen = [kept[i] for i in rows], [adapters[i] for i in rows]
        found = read_answers(learner.host, [sample for _, sample in asked], chosen, take=_read)
        by_task: dict[str, list[tuple[float, float]]] = {}
        for (task, _), values in zip(asked, found, strict=True):
            by_task.setdefault(task, []).append(values)
        arrays = {task: np.array(values).T for task, values in by_task.items()}
        return {task: Measured(losses=row[0], given=row[1]) for task, row in arrays.items()}

    before = answered([adapter for _, adapter in ways])
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
            merged = (f"{group} with {other}", folder)
            after = answered([merged if g == group else adapter for g, adapter in merged_ways])
            learner.host.clear()  # the folder is gone, and the next has the same name
        candidate = Candidate(name=combination, measured=after)
        harm = harmed(candidate, before, tolerated=0.0, unmeasured=0)
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
    for i, group in enumerate(active):
        alike = active if all_pairs else codebook.siblings(group)
        for other in active[i + 1 :]:
            if other in alike and (group, other) not in tried:
                yield group, other


def _validation(version: Version) -> list[tuple[str, Sample]]:
    """Return the validation samples that all groups keep, each with its task."""
    folders = [folder for _, folder in version.adapters.values()]
    pairs = [pair for folder in folders for pair in kept_with(folder, VALIDATION)]
    return [(task or "", sample) for sample, task in pairs]


def _read(log_probs: Any, ids: Any) -> tuple[float, float]:
    """Return an answer's mean loss, and the share of it that greedy decoding gives."""
    right = log_probs.argmax(axis=-1) == ids
    return mean_loss(log_probs, ids), float(np.cumprod(right).mean())


def _means(measured: Mapping[str, Measured]) -> dict[str, float]:
    return {task: float(one.quality.mean()) for task, one in measured.items()}
