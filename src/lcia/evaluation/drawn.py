"""Which held-out samples a version answers if it does not answer all (``evaluation.samples``)."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from lcia.data.task import Task
from lcia.evaluation.matrix import AccuracyMatrix

Read = Callable[[Sequence[str]], Sequence[Task]]


def draw(
    names: Sequence[str], read: Read, *, budget: int, matrix: AccuracyMatrix, seed: int
) -> list[Task]:
    """Return tasks with the held-out samples that a version answers, at most ``budget`` together.

    Each task gets the same share; a rest goes, one sample each, to those that were measured longest
    ago. Of a task, samples take turns: none comes again before all others came. All that this
    depends on is in the matrix, so a run that was stopped draws the same.

    Args:
        names: of the tasks, in the order of learning.
        read: names to tasks; called with those drawn alone, for reading is what costs.
        budget: samples, at least 1.
        matrix: of the version that the new one builds on.
        seed: of the assistant: orders tasks that were measured equally long ago, and samples.
    """
    if not names:
        return []
    last, answered = _measured(matrix)
    share, rest = divmod(budget, len(names))
    shuffled = random.Random(f"tasks {seed}").sample(list(names), len(names))
    shuffled.sort(key=lambda name: last.get(name, 0))
    favoured = set(shuffled[:rest])
    chosen = [name for name in names if share or name in favoured]
    drawn = []
    for task in read(chosen):
        places = list(range(len(task.test)))
        random.Random(f"samples {seed} {task.name}").shuffle(places)
        begin = answered.get(task.name, 0) % len(places)
        size = min(share + (task.name in favoured), len(places))
        taken = sorted((places + places)[begin : begin + size])
        drawn.append(replace(task, test=tuple(task.test[place] for place in taken)))
    return drawn


def _measured(matrix: AccuracyMatrix) -> tuple[dict[str, int], dict[str, int]]:
    """Return task to the last row that measured it, and to the samples that all rows answered."""
    last: dict[str, int] = {}
    answered: Counter[str] = Counter()
    for t in range(1, matrix.learned + 1):
        for i, count in matrix.answered(t).items():
            if count:
                answered[matrix.tasks[i - 1]] += count
                last[matrix.tasks[i - 1]] = t
    return last, answered
