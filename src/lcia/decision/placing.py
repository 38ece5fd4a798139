"""Where a task goes: the group that learns it, and the sibling that might instead."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcia.data.sample import Sample
from lcia.data.task import Task
from lcia.decision.choice import EXPAND
from lcia.decision.instructions import instructions_of, tell_odd_fields
from lcia.decision.validation import hold_back
from lcia.grouping import GroupDecision, InstructionCodebook, told
from lcia.grouping.instruction import whole
from lcia.store.journal import Journal
from lcia.store.store import Store
from lcia.store.version import Version


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Which group learns a task.

    Attributes:
        lesson: the task with what it is trained on.
        held: its held-back samples, to choose by.
        decision: by the task's instructions.
        now: the codebook before the task.
        joined: with the task in ``group``.
        group: the group that is trained.
        start: the adapter that training starts from; None for a fresh one.
        expanded: with the task in ``sibling``; None where only ``group`` can learn it.
        sibling: a new group with the same instructions.
    """

    lesson: Task
    held: tuple[Sample, ...]
    decision: GroupDecision
    now: InstructionCodebook
    joined: InstructionCodebook
    group: str
    start: Path | None
    expanded: InstructionCodebook | None = None
    sibling: str | None = None

    def tell(self, journal: Journal) -> None:
        """Tell a journal which group learns the task, and why."""
        journal.write(
            "grouped",
            task=self.lesson.name,
            group=self.group,
            reason=self.decision.reason,
            similarity=self.decision.similarity,
            similarities=dict(self.decision.similarities),
        )

    def settled(
        self, choice: Mapping[str, Any] | None
    ) -> tuple[InstructionCodebook, str, dict[str, Any]]:
        """Return codebook and group after what was chosen, and what the manifest says of it."""
        said = {"reason": self.decision.reason, "similarity": self.decision.similarity}
        if choice is None:
            return self.joined, self.group, said
        if choice["chosen"] != EXPAND:
            return self.joined, self.group, {**said, "choice": choice}
        assert self.expanded is not None and self.sibling is not None
        return self.expanded, self.sibling, {**said, "reason": "expand", "choice": choice}


def place(
    task: Task,
    store: Store,
    current: Version,
    *,
    share: float,
    journal: Journal,
) -> Placed:
    """Decide which group learns a task, and add its instructions to the codebook.

    Args:
        task: the task.
        store: the assistant.
        current: the version in force.
        share: of the training samples, held back to choose what a retrained group becomes.
        journal: told the decision.
    """
    config, now = store.config, current.codebook()
    seed = config.seed + 1000 * len(current.manifest["tasks"])
    lesson, held = hold_back(task, share, seed=seed)
    measured = bool(held)
    now.open_above(store.groups_opened())
    extraction = instructions_of(lesson)
    tell_odd_fields(lesson, extraction)
    prompts = [told(sample.messages) for sample in lesson.train]
    if config.build_method().config.get("remembered") == 0:  # which promises to keep none
        extraction = extraction.without_prompts(list(map(whole, prompts)), task=task.name)
    decision = now.decide(
        extraction.instructions, system=extraction.system, prompts=prompts if measured else ()
    )

    def added(to: str | None) -> tuple[InstructionCodebook, str]:
        book = now.copy()
        return book, book.add(to, extraction, task=task.name, prompts=prompts, content=measured)

    joined, group = added(decision.group)
    placed = Placed(
        lesson=lesson,
        held=held,
        decision=decision,
        now=now,
        joined=joined,
        group=group,
        start=start_of(decision, store, current),
    )
    placed.tell(journal)
    # All groups share one projector: then a sibling would not leave the others as they are.
    may_expand = config.resolve_grouping().groups == "similar" and config.projector.mode != "shared"
    if not (measured and may_expand and decision.group is not None):
        return placed
    expanded, sibling = added(None)
    return replace(placed, expanded=expanded, sibling=sibling)


def start_of(decision: GroupDecision, store: Store, current: Version) -> Path | None:
    """Return the adapter that training starts from; None for a fresh one.

    The latest is that of the last task. Folders do not tell: with a shared projector every group
    gets one with each task.
    """
    adapters = {group: folder for group, (_, folder) in current.adapters.items()}
    start = store.config.resolve_grouping().start
    if decision.group is not None:
        return adapters[decision.group]
    if start == "fresh" or not adapters:
        return None
    if start == "nearest" and decision.nearest is not None:
        return adapters[decision.nearest]
    trained = [version.manifest["group"] for version in store.history()]
    latest = next((group for group in reversed(trained) if group in adapters), None)
    if latest is not None:
        return adapters[latest]
    return max(adapters.values(), key=lambda folder: folder.name)  # all made by hand
