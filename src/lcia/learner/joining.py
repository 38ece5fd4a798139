"""Groups become fewer where one adapter serves as well as two: measured, not assumed.

Siblings were opened because no retraining kept both tasks when it was tried. A merge of the two
adapters may, or a short rehearsal of what both groups remember that starts from it. Each is tried
on the validation samples that stay with the groups, routed as they would be, and taken only if no
task is harmed (``lcia.decision.choice``). What is taken is a version of its own.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from lcia.config.sharding import without_sharding
from lcia.data.sample import Sample, Task
from lcia.decision.choice import Candidate, Measured, harmed
from lcia.errors import ConfigError, StoreError
from lcia.evaluation.generate import Adapters
from lcia.gate.general import Adapter, Side, mean_loss, read_answers
from lcia.grouping import InstructionCodebook
from lcia.learner.learning import ContinualLearner
from lcia.learner.lifecycle import join_groups
from lcia.learner.training import train_adapter
from lcia.methods.baselines import Sequential
from lcia.store.journal import Journal
from lcia.store.samples import REMEMBERED, VALIDATION, kept_with
from lcia.store.version import Version

COMBINED = ("svd", "linear")
"""Ways of combining that keep the rank, so that the groups' adapters stay of one shape."""

WEIGHTS = (0.5, 0.3, 0.7)
"""Shares of the older group's adapter that are tried."""

NOTICED = 0.01
"""Falls of a task's mean quality below this turn no answer: its adapter is a little less sure."""

EPOCHS = 4
"""Passes of a rehearsal over what both groups remember."""


@dataclass(frozen=True, kw_only=True)
class Joining:
    """What two groups would be as one.

    Attributes:
        group: the older group, which stays.
        other: the younger one, which is gone if they are joined.
        combination: of the best merge; empty where none was measured.
        weight: share of ``group``'s adapter in it.
        rehearsed: whether the merge was then trained on what both groups remember.
        before: task to its mean quality on validation samples, as the groups are.
        after: the same with the adapter that is best for both.
        harmed: the tasks that it harms.
        why_not: why the groups stay as they are; empty where they are joined.
    """

    group: str
    other: str
    combination: str = ""
    weight: float = 0.0
    rehearsed: bool = False
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
        DivergenceError: a rehearsal's loss or parameters are not finite; nothing was changed.
    """
    results: list[Joining] = []
    tried: set[tuple[str, str]] = set()
    version = learner.store.current
    while pair := next(_pairs(version.codebook(), tried, all_pairs=all_pairs), None):
        tried.add(pair)
        with tempfile.TemporaryDirectory() as scratch:
            trial = _Trial(learner, version, *pair, scratch=Path(scratch))
            joining = trial.best()
            results.append(joining)
            tell(joining)
            if joining.why_not or dry_run:
                continue
            version = join_groups(
                learner, *pair, partial(trial.copied, joining), note=_note(joining)
            )
        tried = {known for known in tried if joining.group not in known}
    return results


@dataclass
class _Trial:
    """Makes the adapters that might serve two groups as one, and measures them.

    Args:
        learner: of the assistant.
        version: in force.
        group: the older group.
        other: the younger one.
        scratch: gets a folder for each adapter tried.
    """

    learner: ContinualLearner
    version: Version
    group: str
    other: str
    scratch: Path
    _kept: list[tuple[str, Sample]] = field(init=False, default_factory=list)
    _reached: set[str] = field(init=False, default_factory=set)
    _merged_ways: list[tuple[str | None, Adapter]] = field(init=False, default_factory=list)
    _before: dict[str, Measured] = field(init=False, default_factory=dict)

    def best(self) -> Joining:
        """Return the merge that is best for both groups; rehearsed where each harms a task."""
        now, joined = self.version.codebook(), self.version.codebook()
        joined.merge(self.group, self.other)
        self._kept = self._samples(VALIDATION, self.version.adapters)
        tasks = {task.name for name in (self.group, self.other) for task in now.group(name).tasks}
        if missing := sorted(tasks - {task for task, _ in self._kept}):
            return self._stays(
                f"no validation samples of {', '.join(missing)} are kept to measure it by"
            )
        ways, self._merged_ways = (
            Side(codebook=book, adapters=self.version.adapters).adapters_for(
                sample for _, sample in self._kept
            )
            for book in (now, joined)
        )
        pairs = zip(self._kept, ways, self._merged_ways, strict=True)
        own = (self.group, self.other)
        self._reached = {task for (task, _), (g, _), (h, _) in pairs if g != h or g in own}
        self._before = self._answered([adapter for _, adapter in ways])
        found, refused = list[Joining](), ""
        for combination, weight in product(COMBINED, WEIGHTS):
            merge = Joining(
                group=self.group, other=self.other, combination=combination, weight=weight
            )
            try:
                self._combine(merge)
            except ConfigError as error:
                refused = str(error)
                continue
            found.append(self._measured(merge))
        if not found:
            return self._stays(refused)
        best = max(found, key=_rank)
        samples = self._samples(REMEMBERED, own)
        shared = self.learner.config.projector.mode == "shared"  # it would change for all groups
        if not best.harmed or not samples or shared:
            return best
        rehearsed = replace(best, rehearsed=True)
        self._rehearse(best, rehearsed, [sample for _, sample in samples])
        return max(best, self._measured(rehearsed), key=_rank)

    def copied(self, joining: Joining, adapters: Adapters, folder: Path) -> Path:
        """Copy the adapter that was measured to a folder.

        Raises:
            StoreError: another process has trained one of the groups meanwhile.
        """
        for group in (self.group, self.other):
            if adapters.get(group) != self.version.adapters.get(group):
                raise StoreError(
                    f"{self.learner.store.root}: group {group} was changed while its joining with "
                    "another was measured. Nothing was joined; run the command again."
                )
        return Path(shutil.copytree(self._folder(joining), folder))

    def _stays(self, why_not: str) -> Joining:
        return Joining(group=self.group, other=self.other, why_not=why_not)

    def _folder(self, joining: Joining) -> Path:
        ending = "-rehearsed" if joining.rehearsed else ""
        return self.scratch / f"{joining.combination}-{joining.weight:g}{ending}"

    def _combine(self, merge: Joining) -> None:
        adapters, weight = self.version.adapters, merge.weight
        self.learner.host.combine(
            {
                self.group: (adapters[self.group], weight),
                self.other: (adapters[self.other], 1 - weight),
            },
            self._folder(merge),
            combination=merge.combination,
        )

    def _rehearse(self, start: Joining, joining: Joining, samples: Sequence[Sample]) -> None:
        """Train a merge plainly on what both groups remember, in this process alone."""
        config = self.learner.config
        training = {**without_sharding(config.training), "num_train_epochs": EPOCHS}
        training.pop("max_steps", None)
        folder = self.scratch / "rehearsal"
        trained = train_adapter(
            self.learner.host,
            Task(name=f"{self.group}-{self.other}", train=tuple(samples), test=tuple(samples[:1])),
            method=Sequential(),
            config=config.model_copy(update={"training": training}),
            group=self.group,
            start=self._folder(start),
            own=None,
            task_index=len(self.version.manifest["tasks"]),
            folder=folder,
            journal=Journal(None),
        )
        self.learner.host.clear()
        trained.rename(self._folder(joining))

    def _samples(self, name: str, groups: Iterable[str]) -> list[tuple[str, Sample]]:
        """Return the samples that groups keep in a file, each with its task."""
        folders = [self.version.adapters[group][1] for group in groups]
        pairs = [pair for folder in folders for pair in kept_with(folder, name)]
        return [(task or "", sample) for sample, task in pairs]

    def _measured(self, joining: Joining) -> Joining:
        """Return a joining with what its adapter gives, and whether that harms a task."""
        folder = self._folder(joining)
        adapter = ("joined", folder)
        after = self._answered(
            [adapter if group == self.group else own for group, own in self._merged_ways]
        )
        candidate = Candidate(name=folder.name, measured=after)
        harm = harmed(candidate, self._before, least=NOTICED, doubt=0)  # harmless has to be shown
        return replace(
            joining,
            before=_means(self._before),
            after=_means(after),
            harmed=harm,
            why_not=f"the best merge harms {', '.join(harm)}" if harm else "",
        )

    def _answered(self, adapters: Sequence[Adapter]) -> dict[str, Measured]:
        """Return task to what adapters, one a kept sample, give on its samples."""
        rows = [i for i, (task, _) in enumerate(self._kept) if task in self._reached]
        asked, chosen = [self._kept[i] for i in rows], [adapters[i] for i in rows]
        samples = [sample for _, sample in asked]
        found = read_answers(self.learner.host, samples, chosen, take=_read)
        by_task: dict[str, list[tuple[float, float]]] = {}
        for (task, _), values in zip(asked, found, strict=True):
            by_task.setdefault(task, []).append(values)
        arrays = {task: np.array(values).T for task, values in by_task.items()}
        return {task: Measured(losses=row[0], given=row[1]) for task, row in arrays.items()}


def _rank(joining: Joining) -> tuple[bool, float]:
    return not joining.harmed, fmean(joining.after.values())


def _note(joining: Joining) -> str:
    """Return what the version says: the same for the same joining, for one that was killed."""
    how = f"{joining.combination}, weight {joining.weight}"
    how += ", rehearsed" if joining.rehearsed else ""
    return f"join {joining.other} and {joining.group} ({how})"


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


def _read(log_probs: Any, ids: Any) -> tuple[float, float]:
    """Return an answer's mean loss, and the share of it that greedy decoding gives."""
    right = log_probs.argmax(axis=-1) == ids
    return mean_loss(log_probs, ids), float(np.cumprod(right).mean())


def _means(measured: Mapping[str, Measured]) -> dict[str, float]:
    return {task: float(one.quality.mean()) for task, one in measured.items()}
