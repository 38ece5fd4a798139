"""Changing adapter groups by hand: merge, split, rename, retire; each a version of the store."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcia.errors import ConfigError
from lcia.evaluation.generate import Adapters, evaluate, scores_percent
from lcia.grouping import InstructionCodebook, Router
from lcia.learner.learning import ContinualLearner
from lcia.learner.samples import write_samples
from lcia.learner.store import Version
from lcia.learner.training import MEMORY, memory_of
from lcia.registry import nearest

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
        StoreError: another process is changing the assistant.
    """
    if combination not in COMBINATIONS:
        hint = nearest(combination, COMBINATIONS)
        raise ConfigError(f"combination is {combination!r}, which is not a choice. {hint}")
    if not 0 <= weight <= 1:
        raise ConfigError(f"weight is {weight}; expected a number from 0 to 1.")

    def change(codebook: InstructionCodebook, entries: dict[str, Any]) -> None:
        codebook.merge(group, other)
        entries.pop(other)

    def combine(adapters: Adapters, folder: Path) -> dict[str, Path]:
        weights = {group: weight, other: 1 - weight}
        path = learner.host.combine(
            {name: (adapters[name], share) for name, share in weights.items()},
            folder / group,
            combination=combination,
        )
        if memory := [s for name in weights for s in memory_of(adapters[name][1])]:
            write_samples(path / MEMORY, memory)
        return {group: path}

    note = f"merge {other} into {group} ({combination}, weight {weight:g})"
    return _revise(learner, change, note=note, make=combine)


def split_group(learner: ContinualLearner, group: str, tasks: Sequence[str]) -> Version:
    """Move tasks of a group into a new group, which starts with the same adapter.

    Raises:
        ConfigError: no such group or task, or nothing would move or stay.
        StoreError: another process is changing the assistant.
    """

    def change(codebook: InstructionCodebook, entries: dict[str, Any]) -> None:
        entries[codebook.split(group, tasks)] = entries[group]

    return _revise(learner, change, note=f"split {', '.join(tasks)} from {group}")


def rename_group(learner: ContinualLearner, group: str, name: str) -> Version:
    """Give a group the name people call it; its id stays.

    Raises:
        ConfigError: no such group.
        StoreError: another process is changing the assistant.
    """
    return _revise(learner, lambda book, _: book.rename(group, name), note=f"name {group} {name}")


def retire_group(learner: ContinualLearner, group: str, *, retired: bool = True) -> Version:
    """Keep a group but neither reuse it nor route to it; or take it back.

    Raises:
        ConfigError: no such group.
        StoreError: another process is changing the assistant.
    """
    note = f"{'retire' if retired else 'take back'} {group}"
    return _revise(learner, lambda book, _: book.retire(group, retired=retired), note=note)


def _revise(
    learner: ContinualLearner,
    change: Callable[[InstructionCodebook, dict[str, Any]], Any],
    *,
    note: str,
    make: Callable[[Adapters, Path], Mapping[str, Path]] = lambda adapters, folder: {},
) -> Version:
    """Change the groups, answer all held-out samples that the change may reach, publish."""
    store = learner.store
    with store.writing(), tempfile.TemporaryDirectory() as scratch:
        current = store.current
        codebook, entries = current.codebook(), dict(current.manifest["groups"])
        change(codebook, entries)
        made = make(current.adapters, Path(scratch))
        kept = {group: entry for group, entry in entries.items() if group not in made}
        adapters = {group: _key(group, store.root / e["adapter"]) for group, e in kept.items()}
        number = max(store.versions()) + 1
        adapters |= {group: (f"{group}@{number:04d}", folder) for group, folder in made.items()}
        predictions = evaluate(
            learner.host,
            current.tasks(),
            route=Router(codebook).route,
            adapters=adapters,
            batch_size=learner.config.generation.batch_size,
            known=current.predictions(),
        )
        matrix = current.matrix()
        if predictions:
            matrix = matrix.with_scores(matrix.learned, scores_percent(predictions))
        return store.revise(
            codebook, groups=kept, adapters=made, scored=(matrix, predictions), note=note
        )


def _key(group: str, folder: Path) -> tuple[str, Path]:
    return f"{group}@{folder.name}", folder
