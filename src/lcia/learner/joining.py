"""Groups become fewer where one adapter serves as well as two: measured, not assumed.

Siblings were opened because no retraining kept both tasks when it was tried. A short rehearsal may:
it starts from a merge, half-way between two adapters that each know their task, and trains on what
both groups remember. It is tried on the validation samples that stay with the groups, routed as
they would be, and taken only if no task is harmed (``lcia.decision.choice``). What is taken is a
version of its own.

There is one candidate, on purpose: of six merges the one that was best on a dozen samples was
harmless there, and cost a task 5 to 12 points on test (docs/decisions.md).
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lcia.config.sharding import without_sharding
from lcia.data.sample import Sample, Task
from lcia.decision.choice import Candidate, Measured, harmed
from lcia.errors import ConfigError, GateError, StoreError
from lcia.evaluation.generate import Adapters
from lcia.gate.general import Adapter, Side, mean_loss, read_answers
from lcia.grouping import InstructionCodebook
from lcia.learner import gate
from lcia.learner.learning import ContinualLearner
from lcia.learner.lifecycle import join_groups
from lcia.learner.training import train_adapter
from lcia.memory import memory_watched
from lcia.methods.baselines import Sequential
from lcia.store.journal import Journal
from lcia.store.samples import REMEMBERED, VALIDATION, kept_with
from lcia.store.version import Version

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
        rehearsed: whether the merge was trained on what both groups remember.
        before: task to its mean quality on validation samples, as the groups are.
        after: the same with one adapter; empty where none was measured.
        harmed: the tasks that it harms.
        why_not: why the groups stay as they are; empty where they are joined.
    """

    group: str
    other: str
    rehearsed: bool = False
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    harmed: Sequence[str] = ()
    why_not: str = ""


@memory_watched()
def consolidate(
    learner: ContinualLearner,
    *,
    all_pairs: bool = False,
    dry_run: bool = False,
    tell: Callable[[Joining], object] = lambda joining: None,
) -> list[Joining]:
    """Join groups that one merged adapter replaces without harm to any task.

    Where the assistant's gate looks, what would be joined has to pass it, too.

    Args:
        learner: of the assistant; its listener is told every step of a rehearsal, and what it
            raises ends the measuring.
        all_pairs: try every two groups; else those that share an instruction.
        dry_run: only measure.
        tell: called with what came of each pair at once.

    Returns:
        What came of each pair, in the order tried; a group that grew is tried with others again.

    Raises:
        StoreError: a task is unfinished, or another process is changing the assistant.
        OutOfMemoryError: memory ran out; nothing was changed.
        DivergenceError: a rehearsal's loss or parameters are not finite; nothing was changed.
    """
    results: list[Joining] = []
    tried: set[tuple[str, str]] = set()
    version = learner.store.current
    while pair := next(_pairs(version.codebook(), tried, all_pairs=all_pairs), None):
        tried.add(pair)
        with tempfile.TemporaryDirectory() as scratch:
            trial = _Trial(learner, version, *pair, folder=Path(scratch))
            joining = trial.measured()
            if not (joining.why_not or dry_run):
                try:
                    version = trial.join()
                    tried = {known for known in tried if joining.group not in known}
                except GateError as error:
                    joining = replace(joining, why_not=str(error))
            results.append(joining)
            tell(joining)
    return results


@dataclass
class _Trial:
    """Makes the adapter that might serve two groups as one, and measures it.

    Args:
        learner: of the assistant.
        version: in force.
        group: the older group.
        other: the younger one.
        folder: for what is made.
    """

    learner: ContinualLearner
    version: Version
    group: str
    other: str
    folder: Path

    def measured(self) -> Joining:
        """Return what one adapter gives, beside what the groups give."""
        now, joined = self.version.codebook(), self.version.codebook()
        joined.merge(self.group, self.other)
        joining = Joining(group=self.group, other=self.other)
        kept, own = self._samples(VALIDATION, self.version.adapters), (self.group, self.other)
        tasks = {task.name for group in own for task in now.group(group).tasks}
        if missing := sorted(tasks - {task for task, _ in kept}):
            why_not = f"no validation samples of {', '.join(missing)} are kept to measure it by"
            return replace(joining, why_not=why_not)
        ways, joined_ways = (
            Side(codebook=book, adapters=self.version.adapters).adapters_for(
                sample for _, sample in kept
            )
            for book in (now, joined)
        )
        pairs = zip(kept, ways, joined_ways, strict=True)
        reached = {task for (task, _), (g, _), (h, _) in pairs if g != h or g in own}
        rows = [i for i, (task, _) in enumerate(kept) if task in reached]
        asked = [kept[i] for i in rows]
        try:
            rehearsed = self._make()
        except ConfigError as error:
            return replace(joining, why_not=str(error))
        made = ("joined", self._adapter)
        before = self._answered(asked, [ways[i][1] for i in rows])
        after = self._answered(
            asked, [made if joined_ways[i][0] == self.group else joined_ways[i][1] for i in rows]
        )
        candidate = Candidate(name="joined", measured=after)
        harm = harmed(candidate, before, least=NOTICED, doubt=0)  # harmless has to be shown
        return replace(
            joining,
            rehearsed=rehearsed,
            before=_means(before),
            after=_means(after),
            harmed=harm,
            why_not=f"one adapter harms {', '.join(harm)}" if harm else "",
        )

    def join(self) -> Version:
        """Commit the adapter that was measured in place of both groups'.

        Raises:
            GateError: it does not pass the gate; nothing was changed.
            StoreError: another process has trained one of the groups meanwhile, or is changing the
                assistant.
        """
        own = self.group, self.other
        note = f"join {self.group} and {self.other}"
        return join_groups(self.learner, *own, self._copied, note=note, check=self._check)

    def _check(self, candidate: gate.Candidate) -> None:
        host, config = self.learner.host, self.learner.config
        if config.gate.looks:
            report = gate.report_on(host, config, self.learner.store.current, candidate)
            if not report["passed"]:
                raise GateError(gate.why_refused(report))

    def _copied(self, adapters: Adapters, folder: Path) -> Path:
        for group in (self.group, self.other):
            if adapters.get(group) != self.version.adapters.get(group):
                raise StoreError(
                    f"{self.learner.store.root}: group {group} was changed while its joining with "
                    "another was measured. Nothing was joined; run the command again."
                )
        return Path(shutil.copytree(self._adapter, folder))

    @property
    def _adapter(self) -> Path:
        return self.folder / "joined"

    def _make(self) -> bool:
        """Merge the adapters half and half, and rehearse the merge; tell whether that was done."""
        own = (self.group, self.other)
        merged = self.learner.host.combine(
            {group: (self.version.adapters[group], 0.5) for group in own},
            self.folder / "merged",
            combination="svd",
        )
        samples = [sample for _, sample in self._samples(REMEMBERED, own)]
        shared = self.learner.config.projector.mode == "shared"  # it would change for all groups
        if shared or not samples:
            merged.rename(self._adapter)
            return False
        config = self.learner.config
        training = {**without_sharding(config.training), "num_train_epochs": EPOCHS}
        training.pop("max_steps", None)
        trained = train_adapter(
            self.learner.host,
            Task(name="-".join(own), train=tuple(samples), test=tuple(samples[:1])),
            method=Sequential(),
            config=config.model_copy(update={"training": training}),
            group=self.group,
            start=merged,
            own=None,
            task_index=len(self.version.manifest["tasks"]),
            folder=self.folder / "rehearsal",
            journal=Journal(None, self.learner.listener),
        )
        self.learner.host.clear()
        trained.rename(self._adapter)
        return True

    def _samples(self, name: str, groups: Iterable[str]) -> list[tuple[str, Sample]]:
        """Return the samples that groups keep in a file, each with its task."""
        folders = [self.version.adapters[group][1] for group in groups]
        pairs = [pair for folder in folders for pair in kept_with(folder, name)]
        return [(task or "", sample) for sample, task in pairs]

    def _answered(
        self, asked: Sequence[tuple[str, Sample]], adapters: Sequence[Adapter]
    ) -> dict[str, Measured]:
        """Return task to what adapters, one a sample, give on its samples."""
        samples = [sample for _, sample in asked]
        found = read_answers(self.learner.host, samples, adapters, take=_read)
        by_task: dict[str, list[tuple[float, float]]] = {}
        for (task, _), values in zip(asked, found, strict=True):
            by_task.setdefault(task, []).append(values)
        arrays = {task: np.array(values).T for task, values in by_task.items()}
        return {task: Measured(losses=row[0], given=row[1]) for task, row in arrays.items()}


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
