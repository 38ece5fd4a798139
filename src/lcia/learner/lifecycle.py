"""Changing adapter groups by hand: merge, split, rename, retire; each a version of the store."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcia.errors import ConfigError
from lcia.evaluation.generate import Adapters, scores_percent
from lcia.grouping import InstructionCodebook
from lcia.learner.gate import Candidate
from lcia.learner.learning import ContinualLearner
from lcia.learner.scoring import measured_again, score_tasks, scored_again
from lcia.registry import nearest
from lcia.store import audit
from lcia.store.samples import REMEMBERED, VALIDATION, keep_with, kept_with
from lcia.store.transaction import clear, refuse_unfinished
from lcia.store.version import Version

logger = logging.getLogger(__name__)

COMBINATIONS = ("svd", "linear", "cat")


def merge_groups(
    learner: ContinualLearner,
    group: str,
    other: str,
    *,
    weight: float = 0.5,
    combination: str = "svd",
) -> Version:
    """Merge the adapter and the instructions of ``other`` into ``group``.

    Args:
        learner: of the assistant.
        group: the group that stays.
        other: the group that is gone.
        weight: share of ``group``'s adapter, in [0, 1]; the rest is ``other``'s.
        combination: ``svd`` keeps the rank and approximates the weighted sum, ``linear`` averages
            the factors (equal ranks), ``cat`` is the exact sum with the ranks added (all by
            ``peft.add_weighted_adapter``).

    Raises:
        ConfigError: no such group or combination, or adapters that cannot be combined so.
        StoreError: a task is unfinished, or another process is changing the assistant.
    """
    if combination not in COMBINATIONS:
        hint = nearest(combination, COMBINATIONS)
        raise ConfigError(f"combination is {combination!r}, which is not a choice. {hint}")
    if not 0 <= weight <= 1:
        raise ConfigError(f"weight is {weight}; expected a number from 0 to 1.")

    def combine(adapters: Adapters, folder: Path) -> Path:
        return learner.host.combine(
            {group: (adapters[group], weight), other: (adapters[other], 1 - weight)},
            folder,
            combination=combination,
        )

    note = f"merge {other} into {group} ({combination}, weight {weight})"
    return join_groups(learner, group, other, combine, note=note)


def join_groups(
    learner: ContinualLearner,
    group: str,
    other: str,
    make: Callable[[Adapters, Path], Path],
    *,
    note: str,
    check: Callable[[Candidate], object] = lambda candidate: None,
) -> Version:
    """Let one adapter answer for two groups; ``group`` stays, with the samples of both.

    Args:
        learner: of the assistant.
        group: the group that stays.
        other: the group that is gone.
        make: called with the groups' adapters and a folder to make: writes the adapter there.
        note: what the version says of it.
        check: called with what would be committed; what it raises leaves all as it was.

    Raises:
        ConfigError: no such group.
        StoreError: a task is unfinished, or another process is changing the assistant.
    """

    def change(codebook: InstructionCodebook, entries: dict[str, Any]) -> None:
        codebook.merge(group, other)
        entries.pop(other)

    def replaced(adapters: Adapters, folder: Path) -> dict[str, Path]:
        path = make(adapters, folder / group)
        folders = [adapters[name][1] for name in (group, other)]
        for name in (REMEMBERED, VALIDATION):
            keep_with(path, name, [pair for one in folders for pair in kept_with(one, name)])
        return {group: path}

    return revise(learner, change, note=note, make=replaced, check=check)


def split_group(learner: ContinualLearner, group: str, tasks: Sequence[str]) -> Version:
    """Move tasks of a group into a new group, which starts with the same adapter.

    Each group keeps the samples that it remembers of its own tasks.

    Raises:
        ConfigError: no such group or task, or nothing would move or stay.
        StoreError: a task is unfinished, or another process is changing the assistant.
    """
    halves: dict[str, bool] = {}  # group to whether it is the new one

    def change(codebook: InstructionCodebook, entries: dict[str, Any]) -> None:
        new = codebook.split(group, tasks)
        entries[new] = entries[group]
        halves.update({group: False, new: True})

    def share(adapters: Adapters, folder: Path) -> dict[str, Path]:
        source = adapters[group][1]
        kept = {name: kept_with(source, name) for name in (REMEMBERED, VALIDATION)}
        if not any(kept.values()):
            return {}
        if unknown := sum(task is None for pairs in kept.values() for _, task in pairs):
            logger.warning(
                "group %s: an earlier lcia did not write of which task %d remembered samples are; "
                "both groups keep them.",
                group,
                unknown,
            )
        without = shutil.ignore_patterns(REMEMBERED, VALIDATION, "images")
        for half, is_new in halves.items():
            shutil.copytree(source, folder / half, ignore=without)
            for name, pairs in kept.items():
                own = [(s, t) for s, t in pairs if t is None or (t in tasks) == is_new]
                keep_with(folder / half, name, own)
        return {half: folder / half for half in halves}

    note = f"split {', '.join(tasks)} from {group}"
    return revise(learner, change, note=note, make=share)


def rename_group(learner: ContinualLearner, group: str, name: str) -> Version:
    """Give a group the name people call it; its id stays.

    Raises:
        ConfigError: no such group.
        StoreError: a task is unfinished, or another process is changing the assistant.
    """
    return revise(learner, lambda book, _: book.rename(group, name), note=f"name {group} {name}")


def retire_group(learner: ContinualLearner, group: str, *, retired: bool = True) -> Version:
    """Keep a group but neither reuse it nor route to it; or take it back.

    Raises:
        ConfigError: no such group.
        StoreError: a task is unfinished, or another process is changing the assistant.
    """
    note = f"{'retire' if retired else 'take back'} {group}"
    return revise(learner, lambda book, _: book.retire(group, retired=retired), note=note)


def revise(
    learner: ContinualLearner,
    change: Callable[[InstructionCodebook, dict[str, Any]], Any],
    *,
    note: str,
    make: Callable[[Adapters, Path], Mapping[str, Path]] = lambda adapters, folder: {},
    check: Callable[[Candidate], object] = lambda candidate: None,
) -> Version:
    """Change the groups, answer all held-out samples that the change may reach, commit.

    A change that was killed is finished; one that changes nothing makes no version.
    """
    store = learner.store
    with store.writing(), tempfile.TemporaryDirectory() as scratch:
        clear(store)
        refuse_unfinished(store)
        store.upgrade()
        if begun := store.begun(note):
            told = {"version": begun.number, "parent": begun.manifest["parent"], "note": note}
            audit.record(store.root, "groups changed", once=True, **told)
            store.point_to(begun)
            return begun
        current = store.current
        codebook, entries = current.codebook(), dict(current.manifest["groups"])
        codebook.open_above(store.groups_opened())
        before = codebook.to_dict()
        change(codebook, entries)
        if codebook.to_dict() == before:
            return current
        made = make(current.adapters, Path(scratch))
        kept = {group: entry for group, entry in entries.items() if group not in made}
        adapters = {group: _key(group, store.root / e["adapter"]) for group, e in kept.items()}
        number = store.next_number()
        adapters |= {group: (f"{group}@{number:04d}", folder) for group, folder in made.items()}
        matrix = current.matrix()
        predictions = score_tasks(
            learner.host,
            learner.config,
            scored_again(current, learner.config, matrix),
            codebook=codebook,
            adapters=adapters,
            known=current.predictions(),
        )
        check(
            Candidate(
                task=None,
                codebook=codebook,
                adapters=adapters,
                before=matrix.row(matrix.learned),
                scores=scores_percent(predictions),
                earlier=current.predictions(),
                current=[],
                after=predictions,
            )
        )
        matrix = measured_again(matrix, learner.config, predictions)
        return store.revise(
            codebook, groups=kept, adapters=made, scored=(matrix, predictions), note=note
        )


def _key(group: str, folder: Path) -> tuple[str, Path]:
    return f"{group}@{folder.name}", folder
