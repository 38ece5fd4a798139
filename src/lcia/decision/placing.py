"""Where a task goes: the group that learns it, and the sibling that might instead.

What its prompts say to do decides which groups are alike; training samples that are held back serve
to choose what a group becomes.
"""

import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcia.data.sample import Sample, Task
from lcia.decision.choice import EXPAND
from lcia.grouping import (
    Extraction,
    GroupDecision,
    InstructionCodebook,
    InstructionRecipe,
    Prompt,
    Router,
    told,
)
from lcia.grouping.instruction import whole
from lcia.store.journal import Journal
from lcia.store.store import Store
from lcia.store.version import Version

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Which group learns a task.

    Attributes:
        lesson: the task with what it is trained on.
        alone: the same where the task is trained on alone, for a sibling group most likely.
        held: its validation samples, to choose by.
        decision: by the task's instructions.
        now: the codebook before the task.
        joined: with the task in ``group``.
        group: the group that is trained.
        start: the adapter that training starts from; None for a fresh one.
        start_alone: the same where the task is trained on alone.
        expanded: with the task in ``sibling``; None where only ``group`` can learn it.
        sibling: a new group with the same instructions.
    """

    lesson: Task
    alone: Task
    held: tuple[Sample, ...]
    decision: GroupDecision
    now: InstructionCodebook
    joined: InstructionCodebook
    group: str
    start: Path | None
    start_alone: Path | None
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
    method = config.build_method()
    seed = config.seed + 1000 * len(current.manifest["tasks"])
    lesson, held = hold_back(task, 0.0 if task.corrects else share, seed=seed)
    measured = bool(held)
    now.open_above(store.groups_opened())
    prompts = [told(sample.messages) for sample in lesson.train]
    similar = config.resolve_grouping().groups == "similar"
    answering = answering_group(now, prompts) if task.corrects and similar else None
    extraction = instructions_of(lesson) if answering is None else answering[1]
    tell_odd_fields(lesson, extraction)
    if method.config.get("remembered") == 0:  # which promises to keep none
        extraction = extraction.without_prompts(list(map(whole, prompts)), task=task.name)
    if answering is not None:
        decision = answering[0]
    else:
        decision = now.decide(
            extraction.instructions, system=extraction.system, prompts=prompts if measured else ()
        )

    def added(to: str | None) -> tuple[InstructionCodebook, str]:
        book = now.copy()
        known = to is not None and any(t.content is not None for t in book.group(to).tasks)
        content = measured or (task.corrects and known)
        return book, book.add(to, extraction, task=task.name, prompts=prompts, content=content)

    joined, group = added(decision.group)
    # Routing is judged by words that are not in the codebook, whatever is trained on.
    alone = taught_too(lesson, task, held, method.trained_when_opening)
    placed = Placed(
        lesson=alone if decision.group is None else lesson,
        alone=alone,
        held=held,
        decision=decision,
        now=now,
        joined=joined,
        group=group,
        start=start_of(decision, store, current),
        start_alone=start_of(replace(decision, group=None), store, current),
    )
    placed.tell(journal)
    # All groups share one projector: then a sibling would not leave the others as they are.
    may_expand = similar and config.projector.mode != "shared"
    if not (measured and may_expand and decision.group is not None):
        return placed
    expanded, sibling = added(None)
    return replace(placed, expanded=expanded, sibling=sibling)


def answering_group(
    codebook: InstructionCodebook, prompts: Sequence[Prompt]
) -> tuple[GroupDecision, Extraction] | None:
    """Return the group that answers corrected prompts, and its own instructions in them.

    A few prompts have no instruction of their own: what recurs in one prompt is all of it, which
    would open a group that nobody is sent to. So they are read as the group reads them.

    Args:
        codebook: before the corrections.
        prompts: the corrected ones.

    Returns:
        None where most of them reach no group: then the task is placed as any other.
    """
    router = Router(codebook)
    decisions = [router.route(prompt) for prompt in prompts]
    reached = [d for d in decisions if d.reason in ("reached", "content")]
    if 2 * len(reached) <= len(prompts):
        return None
    group = Counter(str(d.group) for d in reached).most_common(1)[0][0]
    recipes = dict.fromkeys(task.recipe for task in codebook.group(group).tasks)
    recipe = max(recipes, key=lambda r: sum(r.find(prompt) is not None for prompt in prompts))
    extraction = recipe.apply(prompts)
    found = codebook.similarities(extraction.instructions, system=extraction.system)
    others = sorted((g for g in found if g != group), key=lambda g: -found[g])
    decision = GroupDecision(
        group=group,
        similarity=found[group],
        nearest=group,
        runner_up=others[0] if others else None,
        similarities=found,
        reason="reuse",
    )
    return decision, extraction


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
    trained = (version.manifest["group"] for version in store.lineage())
    latest = next((group for group in trained if group in adapters), None)
    if latest is not None:
        return adapters[latest]
    return max(adapters.values(), key=lambda folder: folder.name)  # all made by hand


def instructions_of(task: Task) -> Extraction:
    """Return the instructions of a task, and the recipe that finds them in a prompt.

    Raises:
        ConfigError: an unknown recipe.
        DataError: the recipe cannot work on the task's prompts.
    """
    return InstructionRecipe.parse(task.instruction).fit(
        [told(sample.messages) for sample in task.train],
        [sample.instruction for sample in task.train],
    )


def tell_odd_fields(task: Task, extraction: Extraction) -> None:
    """Say which samples name an instruction that their prompts do not hold."""
    named = [sample for sample in task.train if sample.instruction]
    odd = [s for s in named if not _says(told(s.messages), s.instruction or "")]
    if odd:
        logger.warning(
            "task '%s': %d of %d named instructions do not stand in their prompts; the first is "
            "sample '%s'. Nobody who asks can be routed by them: %s.",
            task.name,
            len(odd),
            len(named),
            odd[0].id,
            extraction.describe(),
        )


def _says(prompt: Prompt, instruction: str) -> bool:
    text = prompt if isinstance(prompt, str) else prompt.whole
    return " ".join(instruction.split()) in " ".join(text.split())


MOST, LEAST, PART = 64, 8, 5
"""How many samples of a task are held back at most and at least; a task of which the least would be
more than one in ``PART`` holds none back."""


def hold_back(task: Task, share: float, *, seed: int) -> tuple[Task, tuple[Sample, ...]]:
    """Return the task with fewer training samples, and the others; its test samples stay.

    A task that opens a group may train on the others as well: see ``taught_too``.

    Args:
        task: the task.
        share: of its training samples, in [0, 1], rounded up; at least ``LEAST``, at most ``MOST``.
        seed: draws them.

    Returns:
        The task itself and nothing if ``share`` is 0, if the task is too small to hold back
        ``LEAST``, or if more than half of it would be held back.
    """
    samples = len(task.train)
    count = min(MOST, max(LEAST, math.ceil(share * samples)))
    if share <= 0 or samples < PART * LEAST or 2 * count > samples:
        return task, ()
    drawn = set(random.Random(f"validation {seed}").sample(range(len(task.train)), count))
    kept = tuple(sample for i, sample in enumerate(task.train) if i not in drawn)
    return replace(task, train=kept), tuple(task.train[i] for i in sorted(drawn))


def taught_too(lesson: Task, task: Task, held: tuple[Sample, ...], share: float) -> Task:
    """Return the lesson of a task that opens a group: with a share of the held-back samples.

    There is nothing to choose yet, or the choice is whether its group keeps the earlier tasks. What
    these samples tell later of forgetting was trained on, so a fall looks larger than it is: the
    choice errs on the side of the earlier task.

    Args:
        lesson: the task without its held-back samples.
        task: the whole task; its order is kept.
        held: the held-back samples.
        share: of them that is trained on, in [0, 1].
    """
    left = set(map(id, held[round(share * len(held)) :]))
    train = tuple(sample for sample in task.train if id(sample) not in left)
    return replace(lesson, train=train)
